# Everything a developer does starts here; `make` alone lists it.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-offline test-arm64 test-container bench torture soak package lint format samples clean

BUNDLE := models/build/ppocr-v4-x86_64-fp32
RECIPE := models/ppocr-v4.toml
CONVERT = .venv/bin/edge-ocr convert $(RECIPE) --target x86_64 --precision fp32
BENCH_ARGS ?=
# What the converter draws documents with; the tests name what is missing.
FONTS := fonts-arphic-ukai fonts-arphic-uming fonts-dejavu-core fonts-liberation fonts-wqy-zenhei
GROUPS := convert,compress,onnx,pack,postgres,dev
PROGRAMS := dosfstools ffmpeg g++ g++-aarch64-linux-gnu gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good \
	gstreamer1.0-plugins-ugly mmdebstrap mosquitto mosquitto-clients openssl postgresql python3-gi qemu-user \
	sane-utils strace systemd
ENGINE := aardvark-dns crun mmdebstrap netavark podman
TARGET ?= aarch64
PYTHON ?= 3.11
ARM_BUNDLE := models/build/ppocr-v4-aarch64-fp32
BOX_BUNDLE ?= models/build/ppocr-v4-portable-fp32
PACK_ARGS ?=
KILLS ?= 1000
PAGES ?= 2000

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the agent; quick when it is up to date
	@sh scripts/setup.sh agent

demo: ## set up, convert PP-OCRv4, read samples/, then run agent, broker and collector on them
	@sh scripts/setup.sh agent convert
	@sh scripts/setup.sh programs mosquitto || true
	$(CONVERT)
	@rm -rf build/demo
	.venv/bin/edge-ocr read samples --text --overlay build/demo --bundle $(BUNDLE)
	@echo && echo "Pictures with boxes:" && ls build/demo/*
	.venv/bin/python scripts/demo.py

test: ## set up, lint, check types, run the tests
	@sh scripts/setup.sh agent $(GROUPS)
	@sh scripts/setup.sh programs $(PROGRAMS) $(FONTS)
	@$(MAKE) --no-print-directory lint
	@test -e $(BUNDLE)/bundle.toml || $(CONVERT)
	@for target in portable paddle; do test -e models/build/ppocr-v4-$$target-fp32/bundle.toml || \
		.venv/bin/edge-ocr convert $(RECIPE) --target $$target --no-measure || exit 1; done
	.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m 'not arm64' </dev/null

test-offline: ## the tests but those below tests/system, once more where there is no network but loopback
	@sh scripts/setup.sh agent $(GROUPS)
	unshare $$([ "$$(id -u)" = 0 ] || echo --map-root-user) --net sh -c 'ip link set lo up && exec \
		.venv/bin/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not system and not arm64"' </dev/null

test-arm64: ## install, read, and build the image on a bare arm64 Debian 12, emulated; root only; LITE_LIB=ARCHIVE
	@sh scripts/setup.sh agent $(GROUPS)
	@sh scripts/setup.sh programs g++-aarch64-linux-gnu mmdebstrap qemu-user-static $(ENGINE) || true
	@test -e $(BOX_BUNDLE)/bundle.toml || .venv/bin/edge-ocr convert $(RECIPE) --target portable --no-measure
	@test -e $(ARM_BUNDLE)/bundle.toml || .venv/bin/edge-ocr convert $(RECIPE) --target aarch64 --no-measure
	$(if $(LITE_LIB),EDGE_OCR_ARM_LITE_LIB=$(LITE_LIB)) .venv/bin/python -m pytest -v -s tests/arm64 </dev/null

test-container: ## build the image and run compose.yaml with podman, as root; prints the image's size; minutes
	@sh scripts/setup.sh agent $(GROUPS)
	@sh scripts/setup.sh programs $(ENGINE)
	@test -e models/build/ppocr-v4-portable-fp32/bundle.toml || .venv/bin/edge-ocr convert $(RECIPE) --target portable --no-measure
	CONTAINER=1 .venv/bin/python -m pytest -q tests/test_container.py tests/system/test_container.py </dev/null

bench: ## measure against RapidOCR, installed beside; BENCH_ARGS="..." goes to edge-ocr bench
	@sh scripts/setup.sh agent convert
	@sh scripts/setup.sh peer .venv-rapidocr-v4 tests/bench/rapidocr-v4.txt
	@sh scripts/setup.sh peer .venv-rapidocr tests/bench/rapidocr.txt
	@test -e $(BUNDLE)/bundle.toml || $(CONVERT)
	.venv/bin/edge-ocr bench $(BENCH_ARGS)

torture: ## kill worker, uplink, collector and broker KILLS=1000 times at random; nothing may be lost
	@sh scripts/setup.sh agent $(GROUPS)
	@sh scripts/setup.sh programs $(PROGRAMS)
	.venv/bin/python -m tests.system.torture --kills $(KILLS) $(if $(SEED),--seed $(SEED))

soak: ## PAGES=2000 mixed pages at two memory limits, and five times as many damaged files; DATA=DIR: labelled sets
	@sh scripts/setup.sh agent $(GROUPS)
	@sh scripts/setup.sh programs $(FONTS)
	@test -e $(BUNDLE)/bundle.toml || $(CONVERT)
	.venv/bin/python -m tests.system.endurance --pages $(PAGES) $(if $(DATA),--data $(DATA)) $(if $(SEED),--seed $(SEED))

package: ## a package for a box without network; TARGET=aarch64 PYTHON=3.11 BOX_BUNDLE=DIR PACK_ARGS="--deb"
	@sh scripts/setup.sh agent $(GROUPS)
	@test -e $(BOX_BUNDLE)/bundle.toml || .venv/bin/edge-ocr convert $(RECIPE) --target portable --no-measure
	.venv/bin/edge-ocr pack --target $(TARGET) --python $(PYTHON) --bundle $(BOX_BUNDLE) $(PACK_ARGS)

lint: ## check style, formatting and types
	@sh scripts/setup.sh agent $(GROUPS)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: ## put the sources into the house's format
	@sh scripts/setup.sh agent $(GROUPS)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

samples: ## draw samples/ anew (needs the fonts of Debian's fonts-noto-cjk)
	@sh scripts/setup.sh agent $(GROUPS)
	.venv/bin/python scripts/draw_samples.py

clean: ## remove all that make has made, environments and bundles too
	rm -rf .venv .venv-rapidocr-v4 .venv-rapidocr build dist models/build
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find agent converters scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
