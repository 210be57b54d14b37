"""Enqueue and message: a call becomes a row, a row a message."""

from __future__ import annotations

from qa.mutants.mutant import I7, Mutant

MUTANTS = [
    Mutant(
        "encoded-between-copies",
        "I1",
        "enqueue/template.py",
        "    if not _PLAIN.issuperset(map(type, args)) or not _PLAIN.issuperset(map(type, kwargs.values())):\n"
        "        return None\n",
        "",
        # The others leave a connection behind that the fixture's end waits for.
        (
            "tests/enqueue/test_bulk_blocks.py::test_values_may_be_encoded_from_the_database_that_they_are_written_to[Tolerant-4]",
        ),
    ),
    Mutant(
        "calls-between-copies",
        "I1",
        "enqueue/bulk.py",
        "while block := list(itertools.islice(taken, BLOCK)):",
        "for block in [taken]:",
        ("tests/enqueue/test_bulk_blocks.py::test_calls_may_come_from_the_database_that_they_are_written_to",),
    ),
    Mutant(
        "size-limit",
        "I7",
        "enqueue/render.py",
        "if len(payload) > (MAX_FOLLOWING_BYTES if passed_on else settings.MAX_PAYLOAD_BYTES):",
        "if False:",
        (f"{I7}::test_an_oversized_call_is_refused_at_the_call_and_writes_nothing",),
    ),
    Mutant(
        "codec-of-the-projects-own",
        "I7",
        "message/decode.py",
        "if kind not in PLAIN_DATA and kind not in settings.TRUSTED_CONTENT_TYPES and kind not in trusted:",
        "if False:",
        ("tests/project/test_security.py::test_e12_an_untrusted_codec_is_decoded_by_no_page_or_command",),
    ),
]
