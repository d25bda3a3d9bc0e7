#!/bin/sh
# What a HelmChart's job runs: install or upgrade the release from the content and the values laid beside it, or delete it.
set -eu
export HOME=/tmp
namespace=${TARGET_NAMESPACE:-$CHART_NAMESPACE}
verb=$1
shift
if [ "$verb" = delete ]; then
  exec helm uninstall "$NAME" --namespace "$namespace" --ignore-not-found --wait
fi
chart=$CHART
if [ -e "/chart/$NAME.tgz.base64" ]; then
  chart=/tmp/$NAME.tgz
  base64 -d <"/chart/$NAME.tgz.base64" >"$chart"
fi
for values in /config/values-*.yaml; do
  [ ! -e "$values" ] || set -- "$@" --values "$values"
done
# The controller finds this label on the release and knows that nothing is left to do; without it the job never ends.
[ -z "${CONFIG_HASH:-}" ] || set -- "$@" --labels "helmcharts.helm.cattle.io/configHash=$CONFIG_HASH"
# A job that was cut short leaves a release that no upgrade may touch; what it had done is done again.
case $(helm status "$NAME" --namespace "$namespace" 2>/dev/null | sed -n 's/^STATUS: //p') in
  pending-install | uninstalling) helm uninstall "$NAME" --namespace "$namespace" --no-hooks ;;
  pending-upgrade | pending-rollback) helm rollback "$NAME" --namespace "$namespace" ;;
esac
exec helm upgrade --install "$NAME" "$chart" --namespace "$namespace" --timeout "${TIMEOUT:-300s}" "$@"
