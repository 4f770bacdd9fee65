#!/usr/bin/env bash
# Install HAProxy for the test of several routers behind it. Without it the test is skipped, so that
# a machine without the right to install packages passes, too.
set -euo pipefail

PATH=$PATH:/sbin:/usr/sbin
command -v haproxy >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "haproxy: installing haproxy"
  apt-get update -q >/dev/null &&
    apt-get install -y -q --no-install-recommends haproxy >/dev/null && exit 0
fi
echo "haproxy: no haproxy, so test/router/test_load_balancer.py is skipped; to run it: sudo apt-get install haproxy"
