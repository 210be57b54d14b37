# Each target installs what it needs into a virtual environment of its own below this directory.
PYTHON ?= python3
DEV = .venv/bin/python
DEMO = .venv-demo/bin/python

.PHONY: help test pins demo serve soak chaos sites mutants contract benchmark lint format messages pictures dev clean

help:
	@echo 'make demo      orders through rollbacks, kills and lost messages, then a table of what came of them'
	@echo 'make serve     the demo shop, its worker, beat and admin, to look at'
	@echo 'make test      everything, for every Python at hand  [ENVS=py312-django60,lint] [ARGS="-k outbox"]'
	@echo 'make pins      the tests of private interfaces, on servers, with every supported pair of Celery and Django'
	@echo 'make soak      the minutes-long tests that make test leaves out'
	@echo 'make chaos     random faults by a seed, and a verdict  [ARGS="--site mariadb --seeds 1-5"; --site list]'
	@echo 'make sites     whole projects as people have them, and a table  [ARGS="--only sqlite pgbouncer --keep"]'
	@echo 'make contract  Celery'"'"'s own integration tests, plain and with every task reliable, and what differs'
	@echo 'make mutants   switches each protection off in turn and requires a red test'
	@echo 'make benchmark speed beside what it replaces, side by side  [ARGS="enqueue work --rounds 3"]'
	@echo 'make lint      format, rules, import floors, types, migrations'
	@echo 'make format    rewrites the files as make lint wants them'
	@echo 'make messages  brings the translations up to date with the code, and compiles them (needs GNU gettext)'
	@echo 'make pictures  takes the pictures of the docs anew, by the browser tests'
	@echo 'make clean     removes what the other targets made'

test: dev
	@$(DEV) tools/run_tox.py $(ENVS) $(if $(ARGS),-- $(ARGS))

PAIRS = py312-django52-celery55-pins,py312-django52-celery56-pins,py312-django52-celery57-pins,\
py312-django60-celery55-pins,py312-django60-celery56-pins,py312-django60-celery57-pins,\
py313-django61-celery55-pins,py313-django61-celery56-pins,py313-django61-celery57-pins

pins: dev
	@$(DEV) tools/run_tox.py "$$(echo '$(PAIRS)' | tr -d ' ')" $(if $(ARGS),-- $(ARGS))

demo: .venv-demo
	@$(DEMO) manage.py demo $(ARGS)

serve: .venv-demo
	@$(DEMO) manage.py serve_demo $(ARGS)

soak: dev
	@DATABASE_URL=$${DATABASE_URL:-postgresql://postgres@127.0.0.1:5432/postgres} \
	BROKER_URL=$${BROKER_URL:-amqp://guest:guest@127.0.0.1:5672//} $(DEV) -m pytest -m soak $(ARGS)

chaos: dev
	@$(DEV) -m qa.chaos $(ARGS)

sites: dev
	@$(DEV) -m tests.sites $(ARGS)

mutants: dev
	@$(DEV) -m qa.mutants $(ARGS)

contract: .venv-contract
	@.venv-contract/bin/python -m qa.contract $(ARGS)

benchmark: .venv-benchmark
	@.venv-benchmark/bin/python -m benchmarks $(ARGS)

lint: dev
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/lint-imports
	@.venv/bin/mypy
	@$(DEV) -m django makemigrations --check --dry-run --settings tests.settings

format: dev
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

# A new language: make messages NEW=fr
messages: dev
	@cd reliable_jobs && ../$(DEV) -m django makemessages --no-location --no-obsolete --no-wrap --ignore static \
		$(if $(NEW),--locale $(NEW),--all)
	@cd reliable_jobs && ../$(DEV) -m django compilemessages

pictures: dev
	@mkdir -p var/pictures
	@SCREENSHOTS=var/pictures $(DEV) -m pytest -q -n 0 -p no:randomly -m "not soak" tests/admin/test_questions.py \
		tests/admin/test_histories_browser.py
	@$(DEV) tools/pictures.py var/pictures docs/images

dev:
	@$(PYTHON) tools/venv.py .venv -r requirements-dev.txt tox tox-uv

# Always looked at: the script does nothing when the environment is up to date.
.PHONY: .venv-demo
.venv-demo:
	@$(PYTHON) tools/venv.py .venv-demo -r requirements.txt

.PHONY: .venv-contract
.venv-contract:
	@$(PYTHON) tools/venv.py .venv-contract -r requirements-contract.txt

.PHONY: .venv-benchmark
.venv-benchmark:
	@$(PYTHON) tools/venv.py .venv-benchmark -r requirements-benchmarks.txt

clean:
	rm -rf .venv .venv-demo .venv-benchmark .venv-contract .tox .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist var
