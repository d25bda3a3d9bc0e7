#!/bin/bash
# All the outside world a node of the lab can reach: the bundle, its packages and images by HTTP, names, and the time.
set -eu
echo "$GATE_NAMES" >/run/names
# A name that is not the lab's does not exist; nobody else is asked.
dnsmasq --keep-in-foreground --user=root --conf-file=/dev/null --no-resolv --no-hosts --addn-hosts=/run/names --address=/#/ &
# What a killed gate left behind would keep its successor from starting.
rm -f /run/chrony/chronyd.pid
# The clock of the machine below is the time; it is never set from in here.
printf 'local stratum 8\nallow\ncmdport 0\n' >/run/chrony.conf
chronyd -d -x -u root -f /run/chrony.conf &
nginx -c /etc/nginx/gate.conf &
trap 'kill $(jobs -p); exit 0' TERM
wait -n
exit 1
