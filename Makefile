# Thin on purpose: each target says what it needs (scripts/setup.sh) and what it runs. CI runs `check` and `test`.

# nextest runs each test in a process of its own and kills the ones that hang; without it, cargo's own runner does.
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
NEXTEST_PROFILE := $(if $(CI),ci,default)

.PHONY: help demo test check bench release

help: ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## A cluster of network namespaces on this machine, with portolan serving it
	@scripts/setup.sh demo
	scripts/demo.sh

test: ## All tests; those that send packets want root
	@scripts/setup.sh test
ifneq ($(NEXTEST),)
	cargo nextest run --workspace --profile $(NEXTEST_PROFILE)
else
	@echo "cargo-nextest is not installed; using cargo test, which cannot kill a test that hangs"
	cargo test --workspace --no-fail-fast --lib --bins --tests
endif
	cargo test --quiet --doc
	scripts/lab-tests.sh
	scripts/check-image.sh

check: ## Format, lints, the rules of this project, licences
	@scripts/setup.sh check
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --quiet --test tidy
	cargo xtask licences
	scripts/check-deploy.sh
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check licenses bans sources; fi

bench: ## What portolan costs beside what it may cost, and benchmarks of the pure layers
	@scripts/setup.sh bench
	cargo bench --bench pipeline
	program=$$(deploy/image/build.sh) && PORTOLAN_BENCH_PROGRAM=$$program cargo bench --bench budgets

release: ## The static program of the image: prints its size and path
	@scripts/setup.sh release
	deploy/image/build.sh
