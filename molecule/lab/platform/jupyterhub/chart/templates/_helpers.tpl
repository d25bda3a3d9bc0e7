{{/* Labels of everything, and those by which a component's pods are found. */}}
{{- define "lab.labels" -}}
{app.kubernetes.io/name: jupyterhub, app.kubernetes.io/instance: {{ .root.Release.Name }}, app.kubernetes.io/component: {{ .component }}, app: jupyterhub, release: {{ .root.Release.Name }}, component: {{ .component }}}
{{- end }}
{{- define "lab.selector" -}}
{app: jupyterhub, release: {{ .root.Release.Name }}, component: {{ .component }}}
{{- end }}

{{/* The rules for going out that switches stand for, and those of the site. */}}
{{- define "lab.egress" -}}
{{- $allow := .egressAllowRules -}}
{{- $dns := list (dict "protocol" "UDP" "port" 53) (dict "protocol" "TCP" "port" 53) -}}
{{- $private := list "10.0.0.0/8" "172.16.0.0/12" "192.168.0.0/16" -}}
{{- $to := list -}}
{{- range $private }}{{ $to = append $to (dict "ipBlock" (dict "cidr" .)) }}{{ end -}}
{{- $metadata := dict "ipBlock" (dict "cidr" "169.254.169.254/32") -}}
{{- $rules := list -}}
{{- if $allow.dnsPortsPrivateIPs }}{{ $rules = append $rules (dict "to" $to "ports" $dns) }}{{ end -}}
{{- if $allow.dnsPortsKubeSystemNamespace -}}
{{- $system := dict "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" "kube-system")) -}}
{{- $rules = append $rules (dict "to" (list $system) "ports" $dns) }}{{ end -}}
{{- if $allow.dnsPortsCloudMetadataServer }}{{ $rules = append $rules (dict "to" (list $metadata) "ports" $dns) }}{{ end -}}
{{- if $allow.nonPrivateIPs -}}
{{- $outside := dict "ipBlock" (dict "cidr" "0.0.0.0/0" "except" (append $private "169.254.169.254/32")) -}}
{{- $rules = append $rules (dict "to" (list $outside)) }}{{ end -}}
{{- if $allow.privateIPs }}{{ $rules = append $rules (dict "to" $to) }}{{ end -}}
{{- if $allow.cloudMetadataServer }}{{ $rules = append $rules (dict "to" (list $metadata)) }}{{ end -}}
{{- toJson (concat $rules .egress) }}
{{- end }}

{{/* Where a part of the platform itself runs, and what the site adds to its pod. */}}
{{- define "lab.core" -}}
nodeSelector: {{ toJson .part.nodeSelector }}
tolerations: {{ concat .root.Values.scheduling.corePods.tolerations .part.tolerations | toJson }}
{{- with .part.extraPodSpec }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where what belongs to users runs; pullers of images tolerate more. */}}
{{- define "lab.user" -}}
nodeSelector: {{ toJson .Values.singleuser.nodeSelector }}
tolerations: {{ concat .Values.scheduling.userPods.tolerations .Values.singleuser.extraTolerations .Values.prePuller.extraTolerations | toJson }}
{{- with .Values.singleuser.extraNodeAffinity.required }}
affinity: {{ dict "nodeAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" .)) | toJson }}
{{- end }}
{{- end }}
