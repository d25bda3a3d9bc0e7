{{/* By what a component's pods are found. */}}
{{- define "lab.labels" -}}
{app: jupyterhub, release: {{ .root.Release.Name }}, component: {{ .component }}}
{{- end }}
