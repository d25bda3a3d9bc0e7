#!/bin/sh
# Ends RKE2 on this machine and every pod with it, with their consent where they give it in time; data stays.
# $1: RKE2's data directory. $2: "for-good" when it is not to start again by itself.
for unit in rke2-server.service rke2-agent.service; do
  if [ "$2" = for-good ]; then systemctl disable "$unit" 2>/dev/null; fi
  systemctl stop "$unit" 2>/dev/null
done
# No kubelet is left that would start anew what ends; databases close their files now.
shims=$(pgrep -d , -f "^$1/data/[^/ ]*/bin/containerd-shim")
[ -z "$shims" ] || pkill -TERM -P "$shims"
for _ in $(seq 20); do
  if [ -z "$shims" ] || ! pgrep -P "$shims" >/dev/null; then break; fi
  sleep 1
done
for program in /usr/local/bin/rke2-killall.sh /opt/rke2/bin/rke2-killall.sh; do
  if [ -x "$program" ]; then RKE2_DATA_DIR=$1 "$program" || exit; fi
done
exit 0
