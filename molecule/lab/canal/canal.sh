#!/bin/sh
# This node's part of the pod network: a VXLAN device, the CNI configuration, and a route to every other node's pods.
# A node's VXLAN address follows from its own address, so nothing needs to be exchanged.
set -eu
# With its path: the shell has an `ip` of its own built in, which knows no VXLAN.
ip() { /usr/bin/ip "$@"; }
mac() { printf '0e:2a:%02x:%02x:%02x:%02x' $(echo "$1" | tr . ' '); }
fields='{.type} {.object.metadata.name} {.object.spec.podCIDR} {.object.status.addresses[?(@.type=="InternalIP")].address}'

rule() { iptables -w -t nat -C POSTROUTING "$@" 2>/dev/null || iptables -w -t nat -A POSTROUTING "$@"; }

[ "$FLANNEL_BACKEND" = vxlan ] || {
  echo "backend $FLANNEL_BACKEND is not to be had here" >&2
  exit 1
}
device=${FLANNEL_IFACE:-$(ip -o route get 192.0.2.1 | sed 's/.* dev \([^ ]*\).*/\1/')}
# VXLAN takes 50 bytes of what the way between the nodes carries.
[ "$MTU" != 0 ] || MTU=$(($(cat "/sys/class/net/$device/mtu") - 50))

own() {
  # $1: this node's pod network
  if ! ip link show flannel.1 >/dev/null 2>&1; then
    ip link add flannel.1 address "$(mac "$NODE_IP")" mtu "$MTU" type vxlan id 1 local "$NODE_IP" dev "$device" dstport 8472 nolearning
  fi
  ip addr replace "${1%/*}/32" dev flannel.1
  ip link set flannel.1 mtu "$MTU" up
  rule -s "$CLUSTER_CIDR" ! -d "$CLUSTER_CIDR" -m comment --comment flanneld -j MASQUERADE
  cat >/etc/cni/net.d/.10-canal.new <<CNI
{"cniVersion": "1.0.0", "name": "k8s-pod-network", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": $MTU,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$1"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}]}
CNI
  mv /etc/cni/net.d/.10-canal.new /etc/cni/net.d/10-canal.conflist
  echo "node $NODE_NAME has $1"
}

peer() {
  # $1: pod network, $2: node address
  gateway=${1%/*}
  ip neigh replace "$gateway" lladdr "$(mac "$2")" dev flannel.1 nud permanent
  bridge fdb replace "$(mac "$2")" dev flannel.1 dst "$2"
  ip route replace "$1" via "$gateway" dev flannel.1 onlink
  echo "route to $1 through $2"
}

gone() {
  ip route del "$1" dev flannel.1 2>/dev/null || true
  bridge fdb del "$(mac "$2")" dev flannel.1 2>/dev/null || true
}

mkdir -p /etc/cni/net.d
known=
own_net=
waiting=
while :; do
  # A watch ends now and then; the next one begins with everything again. A node without a pod network comes later.
  kubectl get nodes --watch --output-watch-events -o "jsonpath=$fields{\"\\n\"}" | while read -r event name network address; do
    case "$known" in *"|$event $name $network $address|"*) continue ;; esac
    [ -n "${address:-}" ] || continue
    if [ "$event" = DELETED ]; then
      gone "$network" "$address"
      known=
      continue
    fi
    known="$known|$event $name $network $address|"
    if [ "$name" = "$NODE_NAME" ]; then
      own "$network"
      own_net=$network
      echo "$waiting" | while read -r n a; do [ -z "$a" ] || peer "$n" "$a"; done
    elif [ -n "$own_net" ]; then
      peer "$network" "$address"
    else
      waiting=$(printf '%s\n%s %s' "$waiting" "$network" "$address")
    fi
  done
  sleep 1
done
