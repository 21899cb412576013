{{/*
Applies a component's patch to the Deployment, in place, as kustomize's strategic merge does for what components change: lists of
the pod and of its first container grow, maps merge, a null takes away. Call with (dict "deployment" $deployment "patch" $patch).
*/}}
{{- define "convoy.patch" -}}
{{- $pod := .deployment.spec.template.spec -}}
{{- $container := index $pod.containers 0 -}}
{{- range $key, $value := .patch.spec.template.spec -}}
  {{- if eq $key "containers" -}}
    {{- range $name, $part := omit (index $value 0) "name" -}}
      {{- include "convoy.put" (dict "target" $container "key" $name "value" $part) -}}
    {{- end -}}
  {{- else -}}
    {{- include "convoy.put" (dict "target" $pod "key" $key "value" $value) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "convoy.put" -}}
{{- $old := get .target .key -}}
{{- if kindIs "slice" .value -}}
  {{- $_ := set .target .key (concat ($old | default list) .value) -}}
{{- else if kindIs "map" .value -}}
  {{- $new := $old | default dict -}}
  {{- range $key, $value := .value -}}
    {{- if kindIs "invalid" $value -}}
      {{- $_ := unset $new $key -}}
    {{- else if kindIs "map" $value -}}
      {{- $_ := set $new $key (mergeOverwrite (get $new $key | default dict) $value) -}}
    {{- else -}}
      {{- $_ := set $new $key $value -}}
    {{- end -}}
  {{- end -}}
  {{- $_ := set .target .key $new -}}
{{- else -}}
  {{- $_ := set .target .key .value -}}
{{- end -}}
{{- end -}}

{{/* A quantity of CPU, such as 2, "1.5" or 500m, in thousandths of a core. */}}
{{- define "convoy.millicores" -}}
{{- $text := toString . -}}
{{- if not (regexMatch "^([1-9][0-9]*m|[0-9]*[.]?[0-9]*[1-9][0-9]*[.]?[0-9]*)$" $text) -}}
  {{- fail (printf "resources: cpu %q: autoscaling by CPU takes cores, such as 2 or 1.5, or thousandths of one, such as 500m" $text) -}}
{{- end -}}
{{- if hasSuffix "m" $text -}}{{ trimSuffix "m" $text }}{{- else -}}{{ mulf (float64 $text) 1000 | int }}{{- end -}}
{{- end -}}
