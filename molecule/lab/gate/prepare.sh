#!/bin/sh
# Once, while the image is made.
set -eu
install -m 0755 /opt/serve.sh /usr/local/sbin/serve
install -m 0644 /opt/nginx.conf /etc/nginx/gate.conf
install -d /srv
rm -rf /opt/*
