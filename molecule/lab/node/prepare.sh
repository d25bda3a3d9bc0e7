#!/bin/sh
# Once, while the image is made: what an installer would have left, and the one unit a container needs before systemd's own.
set -eu
rm -f /etc/ssh/ssh_host_*
: >/etc/machine-id
ln -sf /dev/null /etc/systemd/system/systemd-modules-load.service
for unit in getty@tty1.service console-getty.service systemd-udevd.service systemd-udev-trigger.service systemd-networkd.service \
  apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer; do
  ln -sf /dev/null "/etc/systemd/system/$unit"
done
install -m 0755 /opt/boot.sh /usr/local/sbin/container-boot
install -m 0644 /opt/container-boot.service /etc/systemd/system/container-boot.service
mkdir -p /etc/systemd/system/sysinit.target.wants /etc/systemd/system/chrony.service.d /etc/systemd/journald.conf.d /etc/ssh/sshd_config.d
ln -sf ../container-boot.service /etc/systemd/system/sysinit.target.wants/container-boot.service
printf '[Journal]\nReadKMsg=no\nStorage=volatile\nRuntimeMaxUse=64M\n' >/etc/systemd/journald.conf.d/container.conf
printf 'PasswordAuthentication no\nUseDNS no\nHostKey /etc/ssh/ssh_host_ed25519_key\nMaxStartups 100\n' >/etc/ssh/sshd_config.d/container.conf
install -m 0644 /opt/chrony.conf /etc/systemd/system/chrony.service.d/container.conf
rm -rf /opt/*
