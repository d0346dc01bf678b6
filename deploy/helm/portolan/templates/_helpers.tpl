{{- define "portolan.labels" -}}
app.kubernetes.io/name: portolan
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "portolan.image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) | quote }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end }}

{{- define "portolan.config" -}}
{{- $config := dict
  "apiVersion" "kubeproxy.config.k8s.io/v1alpha1"
  "kind" "KubeProxyConfiguration"
  "detectLocalMode" .Values.detectLocalMode
  "healthzBindAddress" "0.0.0.0:10256"
  "metricsBindAddress" .Values.metricsBindAddress
  "mode" .Values.mode
  "nodePortAddresses" .Values.nodePortAddresses
  "oomScoreAdj" -997
  "clientConnection" (dict "kubeconfig" "/var/lib/kube-proxy/kubeconfig.conf") -}}
{{- with .Values.clusterCIDR }}{{ $_ := set $config "clusterCIDR" . }}{{ end -}}
{{- toYaml (mergeOverwrite $config (deepCopy .Values.extraConfig)) -}}
{{- with .Values.ownConfig }}
---
{{ toYaml (mergeOverwrite (dict "apiVersion" "portolan/v1alpha1" "kind" "PortolanConfiguration") (deepCopy .)) -}}
{{- end -}}
{{- end }}
