# Set-up is scripts/setup.sh, which says what it installs and why.

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.7.0
TIMEOUT    ?= 20m

export CGO_ENABLED = 0

.PHONY: build demo test test-matrix race lint fuzz bench man docs readme-transcript clean

build: ## the program, bin/umbra
	go build -trimpath -o bin/umbra ./cmd/umbra

demo: ## boot a small machine and look into it
	@scripts/demo.sh

test: ## every test, real guests of four kernel generations included
	@scripts/setup.sh
	go test -count=1 -timeout $(TIMEOUT) -p 1 ./...

test-matrix: ## more machines and kernels; MACHINES='7.2/rt-amd64/smp=4 experimental' chooses
	@scripts/setup.sh matrix
	go run ./internal/matrix $(MACHINES)
	[ -n "$(MACHINES)" ] || go test -tags matrix -count=1 -timeout 180m -run Matrix -v ./cmd/umbra

race: ## the race detector on the packages whose tests boot no guest
	@scripts/setup.sh
	CGO_ENABLED=1 go test -race -count=1 -timeout $(TIMEOUT) $$(scripts/fast-packages.sh)

lint: ## gofmt, vet, staticcheck
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt: these files are not formatted:"; echo "$$files"; exit 1; }
	go vet ./...
	go vet -tags matrix ./...
	go run $(STATICCHECK) ./...
	@echo "govulncheck: not run: it needs the vulnerability database of vuln.go.dev, and CI must not depend on it; run it by hand with go run golang.org/x/vuln/cmd/govulncheck@latest ./..."

fuzz: ## every fuzz target for a few seconds (FUZZTIME: 5000x, or 30s)
	@scripts/fuzz.sh

bench: ## the figures of the README
	@scripts/setup.sh
	go run ./bench

man: ## manual pages and shell completion, in bin
	go run ./cmd/umbra man bin/man
	go run ./cmd/umbra completion bash >bin/umbra.bash
	go run ./cmd/umbra completion zsh >bin/_umbra
	go run ./cmd/umbra completion fish >bin/umbra.fish

docs: build ## docs/commands from the program's own help
	rm -rf docs/commands
	bin/umbra man --markdown docs/commands

readme-transcript: ## refresh the transcript in README.md from a real machine
	@scripts/readme-transcript.sh

clean:
	rm -rf bin
