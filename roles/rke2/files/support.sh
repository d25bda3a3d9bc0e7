#!/bin/sh
# What a helper from afar asks first, in sections. $1: RKE2's data directory. $2: lines of each log.
section() { echo "==> $1"; }
section versions
. /etc/os-release; echo "$PRETTY_NAME, kernel $(uname -r), up since $(uptime -s)"
for program in /usr/local/bin/rke2 /opt/rke2/bin/rke2; do [ ! -x $program ] || $program --version; done
dpkg-query -W keepalived chrony 2>/dev/null
section units
systemctl list-units --no-pager --plain --failed
systemctl show rke2-server rke2-agent keepalived chrony -p Id,ActiveState,SubState,NRestarts,ActiveEnterTimestamp
section machine
uptime; free -m; df -hT -x tmpfs -x overlay; timedatectl show
for unit in rke2-server rke2-agent keepalived; do
  lines=$(journalctl -u $unit -n "$2" -o short-iso --no-pager 2>/dev/null)
  [ -z "$lines" ] || { section $unit.log; echo "$lines"; }
done
[ ! -e "$1/agent/logs/kubelet.log" ] || { section kubelet.log; tail -n "$2" "$1/agent/logs/kubelet.log"; }
[ -d "$1/server/db/etcd" ] || exit 0
section etcd
python3 - "$1/server/tls/etcd" <<'PYTHON'
import http.client, json, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1] + "/server-ca.crt")
context.load_cert_chain(sys.argv[1] + "/client.crt", sys.argv[1] + "/client.key")
for path in ("/v3/cluster/member/list", "/v3/maintenance/status", "/v3/maintenance/alarm"):
    # RKE2 moves HTTP from the clients' port to one of its own.
    for port in (2382, 2379):
        try:
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=8)
            connection.request("POST", path, '{"action": "GET"}' if path.endswith("alarm") else "{}")
            print(path, json.dumps(json.loads(connection.getresponse().read()), indent=1))
            break
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(path, port, error)
PYTHON
section snapshots
ls -l --time-style=long-iso "$1/server/db/snapshots" 2>/dev/null
exit 0
