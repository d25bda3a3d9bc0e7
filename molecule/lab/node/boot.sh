#!/bin/sh
# What a machine's firmware and kernel give and a container has to arrange: writable cgroups, its own network sysctls,
# its own files instead of the container engine's bind mounts. Idempotent: it runs at every boot.
set -eu
for controller in /sys/fs/cgroup/*; do
  mountpoint -q "$controller" && mount -o remount,rw,bind "$controller"
done
mountpoint -q /proc/sys/net || mount --bind /proc/sys/net /proc/sys/net
mount -o remount,rw,bind /proc/sys/net
# The kubelet sets these six and ends when it cannot; they belong to the host, so the node gets files of its own.
mkdir -p /run/tunables
for pair in vm.overcommit_memory=1 vm.panic_on_oom=0 kernel.panic=10 kernel.panic_on_oops=1 kernel.keys.root_maxkeys=1000000 kernel.keys.root_maxbytes=25000000; do
  path=/proc/sys/$(echo "${pair%=*}" | tr . /)
  file=/run/tunables/${pair%=*}
  mountpoint -q "$path" && continue
  echo "${pair#*=}" >"$file"
  mount --bind "$file" "$path"
done
mount --make-rshared /
# Bind mounts cannot be replaced by a rename.
for file in hosts hostname resolv.conf; do
  if mountpoint -q /etc/$file; then
    cp /etc/$file /run/$file.copy
    umount /etc/$file
    cp /run/$file.copy /etc/$file
  fi
done
echo "nameserver $LAB_DNS" >/etc/resolv.conf
# A machine has a default route, though this one leads no further than the machine below.
ip route replace default via "$LAB_GATEWAY"
[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
mkdir -p /run/sshd
