"""Which calls harm, or are harmed by, a transaction round the whole task function. docs/atomic.md has a section for
each code."""

from __future__ import annotations

import dataclasses
import fnmatch


@dataclasses.dataclass(frozen=True)
class Rule:
    code: str
    #: What to do about it, in a line.
    fix: str
    #: Dotted names, with * and ?. "?.name" is a method of something unknown.
    calls: tuple[str, ...] = ()

    def matches(self, dotted: str) -> bool:
        return any(fnmatch.fnmatchcase(dotted, pattern) for pattern in self.calls)


COMMIT = Rule(
    "commit",
    "stay non-atomic and write in `with self.fenced():`, or make each chunk a run or a job of its own",
    (
        *("django.db.transaction.commit", "django.db.transaction.rollback", "django.db.transaction.set_autocommit"),
        *("django.db.connection.commit", "django.db.connection.rollback", "django.db.connection.set_autocommit"),
        *("?.set_autocommit",),
    ),
)
DURABLE = Rule("durable", "stay non-atomic: a durable block refuses to be inside another one")
CHUNKS = Rule(
    "chunks", "stay non-atomic, or make each item a run (snooze) or a job: else it is one transaction for all"
)
FILE = Rule(
    "file",
    "stay non-atomic, or do it after the commit: transaction.on_commit(…)",
    (
        *(
            "os.remove",
            "os.unlink",
            "os.rename",
            "os.renames",
            "os.replace",
            "os.rmdir",
            "os.removedirs",
            "os.truncate",
        ),
        *("shutil.move", "shutil.rmtree", "shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree"),
        *(f"pathlib.Path.{name}" for name in ("unlink", "rename", "replace", "rmdir", "write_text", "write_bytes")),
        *("?.unlink", "?.write_text", "?.write_bytes", "django.core.files.storage.default_storage.delete"),
        *("django.core.files.storage.default_storage.save", "?.storage.delete", "?.storage.save"),
        *("?.file.delete", "?.file.save", "?.image.delete", "?.image.save", "?.file_field.delete"),
        *("django.core.files.move.file_move_safe",),
        *(f"django.db.models.{kind}Field.{name}" for kind in ("File", "Image") for name in ("save", "delete")),
    ),
)
SUBPROCESS = Rule(
    "subprocess",
    "stay non-atomic, or start it from a second task, enqueued here: the process does not see what is not committed",
    (
        *("subprocess.*", "os.system", "os.popen", "os.exec*", "os.spawn*", "os.posix_spawn*", "os.fork", "os.kill"),
        *("multiprocessing.Process", "multiprocessing.Pool", "multiprocessing.pool.*", "asyncio.create_subprocess_*"),
        *("concurrent.futures.ProcessPoolExecutor", "pexpect.*", "sh.*", "plumbum.*", "docker.*"),
    ),
)
NETWORK = Rule(
    "network",
    "stay non-atomic, with a timeout and self.idempotency_key; write the outcome in `with self.fenced():`",
    (
        *("requests.*", "httpx.*", "aiohttp.*", "urllib3.*", "urllib.request.*", "http.client.*", "httplib2.*"),
        *("smtplib.*", "imaplib.*", "poplib.*", "ftplib.*", "socket.*", "paramiko.*", "pysftp.*", "telnetlib.*"),
        *("boto3.*", "botocore.*", "google.cloud.*", "googleapiclient.*", "azure.*", "minio.*", "imap_tools.*"),
        *("stripe.*", "twilio.*", "sendgrid.*", "slack_sdk.*", "ldap.*", "ldap3.*", "jira.*", "github.*", "gitlab.*"),
        *("openai.*", "anthropic.*", "elasticsearch.*", "opensearchpy.*", "meilisearch.*", "firebase_admin.*"),
        *("pywebpush.*", "zeep.*", "suds.*", "xmlrpc.client.*", "websocket.*", "feedparser.parse", "tweepy.*"),
        *("django.core.mail.*", "?.email_user", "?.send_mail", "?.urlopen", "?.sendmail"),
    ),
)
SLEEP = Rule("sleep", "wait with `raise self.snooze(seconds)` or a retry's countdown", ("time.sleep", "gevent.sleep"))
CONNECTION = Rule(
    "connection",
    "remove it (a worker gives each task a live connection), or stay non-atomic",
    (
        *("django.db.close_old_connections", "django.db.connection.close", "django.db.connection.connect"),
        *("django.db.connections.close_all", "?.close_if_unusable_or_obsolete"),
    ),
)
THREAD = Rule(
    "thread",
    "stay non-atomic, or make what the thread does a job: it has a database connection of its own",
    (
        *("threading.Thread", "threading.Timer", "concurrent.futures.ThreadPoolExecutor"),
        *("multiprocessing.dummy.*", "multiprocessing.pool.ThreadPool", "?.run_in_executor"),
    ),
)
RECORDED = Rule("recorded-error", "note it with self.on_rollback(…) or in on_failure: what is noted here is undone")
STATUS = Rule(
    "status",
    "nobody sees it before the end: stay non-atomic, or work in pieces",
    ("celery.Task.update_state", "?.update_state"),
)
INTEGRITY = Rule("integrity-error", "put what may fail into a savepoint: `with transaction.atomic():` inside the try")
CACHE = Rule(
    "cache",
    "write it after the commit: transaction.on_commit(…)",
    (
        *(f"django.core.cache.cache.{name}*" for name in ("set", "add", "delete", "incr", "decr", "touch", "clear")),
        *("django.core.cache.cache.lock", "redis.*", "django_redis.*", "?.delete_pattern"),
    ),
)
WAIT = Rule("wait", "use a chain, a chord or a second task: a job enqueued here is published when this one commits")

CALLS = (COMMIT, FILE, SUBPROCESS, NETWORK, SLEEP, CONNECTION, THREAD, STATUS, CACHE)
RULES = (*CALLS, DURABLE, CHUNKS, RECORDED, INTEGRITY, WAIT)

#: Of the modules above, what touches nothing.
HARMLESS = (
    *("*Error", "*Exception", "*.exceptions.*", "subprocess.list2cmdline", "socket.gethostname", "socket.getfqdn"),
    *("requests.utils.*", "requests.status_codes.*", "requests.codes*", "urllib3.util.*", "urllib.request.Request"),
    *("urllib3.disable_warnings", "ldap.filter.*", "docker.types.*", "*.auth.*Auth", "httpx.Timeout"),
    *("imap_tools.A", "imap_tools.AND", "imap_tools.OR", "imap_tools.NOT", "imap_tools.H", "imap_tools.U"),
    *("boto3.dynamodb.*", "redis.exceptions.*", "azure.core.exceptions.*", "google.cloud.*.types.*"),
    *("django.core.mail.EmailMessage", "django.core.mail.EmailMultiAlternatives", "django.core.mail.*.attach*"),
    *("multiprocessing.cpu_count", "subprocess.CompletedProcess", "smtplib.SMTP*Exception"),
)


def rule_for(dotted: str) -> Rule | None:
    """The rule that a call of this name breaks."""
    if any(fnmatch.fnmatchcase(dotted, pattern) for pattern in HARMLESS):
        return None
    names = [dotted, f"?.{dotted.rpartition('.')[2]}"] if dotted.startswith("?") else [dotted]
    return next((rule for rule in CALLS if any(map(rule.matches, names))), None)
