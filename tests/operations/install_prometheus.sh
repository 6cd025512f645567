#!/usr/bin/env bash
# Installs prometheus and promtool where it may: as root, on Debian and its kin. Their service is not started.
# Does nothing where they are there already, and nothing but say so where it may not.
set -euo pipefail

if command -v promtool >/dev/null && command -v prometheus >/dev/null; then
  promtool --version | head -1
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "promtool is not installed, and only root on Debian or Ubuntu gets it here: tests that need it are skipped"
  exit 0
fi

# A package's service starts unless this says no; one that is there already is left as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends prometheus >/dev/null
promtool --version | head -1
