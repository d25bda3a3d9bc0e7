#!/bin/sh
# The settings of the official image on the distribution's PostgreSQL: POSTGRES_DB, POSTGRES_USER, POSTGRES_PASSWORD(_FILE), PGDATA, and programs in
# /docker-entrypoint-initdb.d. As there, a volume counts as prepared as soon as initdb has been at it.
set -eu
user=${POSTGRES_USER:-postgres}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  umask 077
  password=$(mktemp)
  if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then cat "$POSTGRES_PASSWORD_FILE"; else printf '%s' "$POSTGRES_PASSWORD"; fi >"$password"
  initdb --username="$user" --pwfile="$password" --encoding=UTF8 --locale=C.UTF-8 --auth-local=trust --auth-host=scram-sha-256
  rm "$password"
  echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
  pg_ctl --wait --options="-c listen_addresses=''" start
  [ "${POSTGRES_DB:-$user}" = postgres ] || createdb --username="$user" "${POSTGRES_DB:-$user}"
  for program in /docker-entrypoint-initdb.d/*; do
    [ ! -x "$program" ] || "$program"
  done
  pg_ctl --wait --mode=fast stop
fi
exec "$@"
