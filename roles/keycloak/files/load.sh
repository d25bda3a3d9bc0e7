#!/bin/sh
# The image runs this on a volume that it has just prepared, before anybody can connect: the newest dump comes back, if there is one.
set -eu
dump=$(find /dumps -maxdepth 1 -name 'keycloak-*.dump' | sort | tail -n 1)
if [ -n "$dump" ]; then
  echo "loading $dump"
  pg_restore --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" --single-transaction --exit-on-error "$dump"
fi
rm -f "$PGDATA.preparing"
