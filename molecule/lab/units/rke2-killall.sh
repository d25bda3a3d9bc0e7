#!/bin/sh
# Ends every process of the node's cluster and takes its network down; data stays.
[ "$(id -u)" = 0 ] || exec sudo "$0" "$@"
data=${RKE2_DATA_DIR:-/var/lib/rancher/rke2}
systemctl stop rke2-server.service rke2-agent.service 2>/dev/null
pkill -f "$data/data/[^/ ]*/bin/(containerd|kubelet|haproxy|helm-controller) "
for pid in $(pgrep -f "$data/data/[^/ ]*/bin/containerd-shim"); do
  for child in $(pgrep -P "$pid"); do
    pkill -KILL -P "$child"
    kill -KILL "$child"
  done
  kill -KILL "$pid"
done 2>/dev/null
sleep 0.5
awk '$2 ~ "^(/run/k3s|/var/lib/kubelet/pods|/run/netns/cni-|'"$data"'/agent/containerd)" {print $2}' /proc/self/mounts | sort -r | while read -r mount; do
  umount "$mount" 2>/dev/null || umount -l "$mount"
done
rm -rf /run/k3s /run/netns/cni-*
for link in cni0 flannel.1; do ip link delete "$link" 2>/dev/null; done
ip -o link | sed -n 's/^[0-9]*: \(veth[^@:]*\).*/\1/p' | while read -r link; do ip link delete "$link" 2>/dev/null; done
rm -f "$data"/agent/pod-manifests/*.yaml
for tool in iptables ip6tables; do
  "$tool"-save 2>/dev/null | grep -vE 'KUBE-|CNI-|cali-|flannel' | "$tool"-restore 2>/dev/null
done
exit 0
