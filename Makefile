# What people and CI run here. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build demo serve test conformance torture fuzz bench bench-convert bench-many bench-scale lint fmt bootstrap

# The clients that deploy/bootstrap installed come first, so that everybody demonstrates and tests with the same ones.
clients := $(shell deploy/bootstrap --print-path)
export PATH := $(clients):$(PATH):/usr/sbin:/sbin:$(HOME)/.cargo/bin

# s3s asks for Rust 1.96 and builds on 1.95: an older toolchain is told to try.
rustc_minor := $(shell PATH='$(PATH)' rustc --version 2>/dev/null | sed -nE 's/^rustc 1\.([0-9]+).*/\1/p')
old_rustc := $(shell [ "$(rustc_minor)" -lt 96 ] 2>/dev/null && echo --ignore-rust-version)

# RocksDB's C++ is compiled once for all targets: always the release profile, always the features of the whole workspace.
cargo_flags := --release --workspace --locked $(old_rustc)
release := $(abspath $(or $(CARGO_TARGET_DIR),target))/release
server := $(release)/lithos

help: ## lists this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## one image, end to end, through two servers; KEEP=1 leaves them running
	@deploy/bootstrap demo
	cargo build --bin lithos $(cargo_flags)
	@LITHOS='$(server)' KEEP='$(KEEP)' deploy/demo

serve: build ## runs a server on ./lithos-data and says how to use it
	@printf '%s\n' '' \
	  'S3 on http://127.0.0.1:9000, management on http://127.0.0.1:9001, data in ./lithos-data. Ctrl-C stops it.' \
	  'Its keys are in ./lithos-data/credentials, unless you set LITHOS_ACCESS_KEY and LITHOS_SECRET_KEY. Try, elsewhere:' '' \
	  '  export PATH=$(clients):$$PATH' \
	  '  export AWS_ENDPOINT_URL=http://127.0.0.1:9000 AWS_DEFAULT_REGION=us-east-1' \
	  '  export AWS_SHARED_CREDENTIALS_FILE=$(CURDIR)/lithos-data/credentials' \
	  '  aws s3 mb s3://images' \
	  '  aws s3 cp disk.img s3://images/disk.img' \
	  "  aws s3api put-object-tagging --bucket images --key disk.img --tagging 'TagSet=[{Key=convert-to,Value=qcow2}]'" \
	  '  aws s3api head-object --bucket images --key disk.qcow2' ''
	@exec '$(server)' serve --data lithos-data

build: ## compiles the server
	@deploy/bootstrap build
	cargo build --bin lithos $(cargo_flags)

# The server first, because nextest builds no program of another crate. Then the doc tests: nextest closes with the count
# of what ran.
test: ## runs all tests
	@deploy/bootstrap test
	cargo build --bin lithos $(cargo_flags)
	cargo test --doc --quiet $(cargo_flags)
	cargo nextest run $(cargo_flags)

torture: ## cuts the power of a server under load for MINUTES=60, and checks what it kept
	@deploy/bootstrap test
	cargo build --bin lithos --bin lithos-torture $(cargo_flags)
	'$(release)/lithos-torture' --minutes $(or $(MINUTES),60) --keep --report torture-report.txt

# With LITHOS_BIN, a server of that program instead of the one just built.
conformance: ## runs all cases and clients, and counts them; ENDPOINT=http://... asks another server, MARKDOWN=1 for a page
	@deploy/bootstrap test
	cargo build --bin lithos --bin lithos-conformance $(cargo_flags)
	@'$(release)/lithos-conformance' $(if $(ENDPOINT),--endpoint '$(ENDPOINT)') $(if $(MARKDOWN),--markdown) $(WORD)

bench: ## measures the store: bodies, small puts, long layouts
	@deploy/bootstrap build
	cargo bench --bench store $(filter-out --release,$(cargo_flags))

bench-convert: ## measures conversions against qemu-img; SIZE=1 (GiB; 8) and ROUNDS=1 (5) for a quick look
	@deploy/bootstrap test
	cargo build --bin lithos $(cargo_flags)
	@LITHOS='$(server)' SIZE='$(or $(SIZE),8)' ROUNDS='$(or $(ROUNDS),5)' ONLY='$(ONLY)' deploy/bench-convert

bench-many: ## ten million objects: index, start, listings (minutes, and 10 GiB of disk)
	@deploy/bootstrap build
	cargo bench --bench many $(filter-out --release,$(cargo_flags))

bench-scale: ## measures, through the server, listings of a million keys and an upload of 10,000 parts; takes minutes
	@deploy/bootstrap build
	cargo build --bin lithos $(cargo_flags)
	cargo bench --bench scale $(filter-out --release,$(cargo_flags))

# In the corpus is what `convert/fuzz/seed` made of small images, and what earlier runs found. `RUSTC_BOOTSTRAP` stands in for
# a nightly compiler, which alone has the sanitizers.
fuzz_flags := --fuzz-dir convert/fuzz --sanitizer address
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz: ## feeds a parser with broken images for MINUTES=15; TARGET= is one of convert/fuzz/fuzz_targets
	@deploy/bootstrap build
	@command -v cargo-fuzz >/dev/null || { echo 'fuzz: no cargo-fuzz here (cargo install --locked cargo-fuzz)' >&2; exit 1; }
	@[[ -n '$(TARGET)' ]] || { echo "fuzz: which TARGET=? $$(cd convert/fuzz/fuzz_targets && echo * | sed 's/\.rs//g')" >&2; exit 2; }
	@[[ -d convert/fuzz/corpus/$(TARGET) ]] || convert/fuzz/seed "$$(deploy/bootstrap --print-iso)"
	cargo fuzz run $(fuzz_flags) '$(TARGET)' -- -max_total_time=$$((60 * $(or $(MINUTES),15))) -timeout=20 -rss_limit_mb=2048 -max_len=34000

lint: ## format, clippy, docs, scripts, licenses
	@deploy/bootstrap lint
	cargo fmt --all --check
	cargo clippy --all-targets $(cargo_flags) -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items $(cargo_flags)
	@if command -v shellcheck >/dev/null; then set -x; shellcheck deploy/bootstrap deploy/demo .ci/run; \
	else echo 'lint: no shellcheck for this processor: the scripts were NOT checked' >&2; fi
	@if command -v cargo-deny >/dev/null; then set -x; cargo deny --locked check --hide-inclusion-graph bans licenses sources; \
	else echo 'lint: no cargo-deny here: licenses and sources were NOT checked (cargo install --locked cargo-deny)' >&2; fi

fmt: ## formats the Rust code
	cargo fmt --all

bootstrap: ## installs what all of these need; each also does so by itself
	@deploy/bootstrap
