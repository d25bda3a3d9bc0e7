#!/bin/sh
# Removes the node's cluster with its data and its program.
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
data=${RKE2_DATA_DIR:-/var/lib/rancher/rke2}
prefix=${INSTALL_RKE2_ROOT:-/usr/local}
"$prefix/bin/rke2-killall.sh"
systemctl disable rke2-server.service rke2-agent.service 2>/dev/null
rm -f "$prefix"/lib/systemd/system/rke2-server.* "$prefix"/lib/systemd/system/rke2-agent.*
systemctl daemon-reload
rm -rf /etc/rancher/rke2 /etc/rancher/node /etc/cni /opt/cni /var/lib/cni /var/lib/kubelet/* /var/log/pods /var/log/containers /etc/kubernetes "$prefix/share/rke2"
find "$data" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
rmdir "$data" /etc/rancher 2>/dev/null
rm -f "$prefix/bin/rke2" "$prefix/bin/rke2-killall.sh" "$prefix/bin/rke2-uninstall.sh"
exit 0
