#!/bin/sh
# A dump of the database beside the homes, whole or not at all; those that are too old go once there is a new one.
set -eu
umask 077
PGPASSWORD=$(cat /run/secrets/database/password)
export PGPASSWORD
dump=/dumps/keycloak-$(date -u +%Y%m%dT%H%M%SZ).dump
rm -f /dumps/*.new
pg_dump --format=custom --file="$dump.new"
pg_restore --list "$dump.new" >/dev/null
sync "$dump.new"
mv "$dump.new" "$dump"
find /dumps -maxdepth 1 -name 'keycloak-*.dump' -mtime "+$KEEP_DAYS" -delete
