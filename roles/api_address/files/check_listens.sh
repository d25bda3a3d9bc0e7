#!/bin/bash
# Exit 0 when every given TCP port of an address accepts connections, 1 with the reason otherwise.
#
#     check_listens ADDRESS PORT...
#
# keepalived runs this every second and ends it after one, so it starts no other program. It tells a server that is down,
# or that has been stopped, within two seconds; one that hangs is found by check_serves.
address=$1
shift
for port; do
  exec 3<>"/dev/tcp/$address/$port" || exit 1
  exec 3>&-
done
