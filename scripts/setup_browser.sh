#!/usr/bin/env bash
# Install Chromium for the tests that open a report. Without it they are skipped, so that a machine
# without the right to install packages passes, too.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  command -v "$name" >/dev/null && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "browser: installing chromium"
  apt-get update -q >/dev/null &&
    apt-get install -y -q --no-install-recommends chromium >/dev/null && exit 0
fi
echo "browser: no chromium, so tests that open a report are skipped; to run them: sudo apt-get install chromium"
