{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 40: a LeaderWorkerSet's pods add their numbers. */}}
{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "shoal.selectorLabels" -}}
app.kubernetes.io/name: {{ include "shoal.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "shoal.labels" -}}
{{ include "shoal.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "shoal.serviceAccountName" -}}
{{- default (ternary (include "shoal.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{- define "shoal.image" -}}
{{- $kind := ternary "cuda" "cpu" (gt (int .Values.gpusPerNode) 0) }}
{{- printf "%s:%s" .Values.image.repository (default (printf "%s-%s" .Chart.AppVersion $kind) .Values.image.tag) }}
{{- end }}

{{/* What values.schema.json cannot say, because it is about two values together. */}}
{{- define "shoal.check" -}}
{{- $volume := .Values.model.volume }}
{{- $volumes := 0 }}
{{- range (list $volume.existingClaim $volume.hostPath $volume.nfs) }}{{ if . }}{{ $volumes = add1 $volumes }}{{ end }}{{ end }}
{{- if ne (int $volumes) 1 }}
{{- fail "model.volume: set exactly one of existingClaim, hostPath and nfs" }}
{{- end }}
{{- if and (not .Values.security.apiKeys.secret) (not (and .Values.security.tls.secret .Values.security.tls.clientCa)) (not .Values.security.allowWithoutKeys) }}
{{- fail "security: set apiKeys.secret, or tls.secret with tls.clientCa, or allowWithoutKeys=true: everybody who reaches the service may then call" }}
{{- end }}
{{- if and (gt (int .Values.gpusPerNode) 0) (gt (int .Values.ranksPerNode) (int .Values.gpusPerNode)) }}
{{- fail "ranksPerNode: a rank needs a GPU of its own; set gpusPerNode to as many" }}
{{- end }}
{{- if gt (int .Values.nodes) 1 }}
{{- if not .Values.multiNode.sshSecret }}
{{- fail "multiNode.sshSecret: several nodes need a secret with the ssh key that their pods share" }}
{{- end }}
{{- if .Values.kvCheckpoint.existingClaim }}
{{- fail "kvCheckpoint: of one node only" }}
{{- end }}
{{- else if and .Values.kvCheckpoint.existingClaim (gt (int .Values.replicas) 1) }}
{{- fail "kvCheckpoint: of one server at a time; replicas has to be 1" }}
{{- end }}
{{- range $reserved := list "model" "host" "port" "hosts" "hostfile" "launch-agent" "tensor-parallel-size" "api-key" "api-key-file" "ssl-certfile" "ssl-keyfile" "ssl-ca-certs" "drain-timeout" "rank-interface" "kv-checkpoint-dir" }}
{{- if hasKey $.Values.flags $reserved }}
{{- fail (printf "flags.%s: the chart sets it from its other values" $reserved) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name in the server's certificate. */}}
{{- define "shoal.tlsName" -}}
{{- default (printf "%s-grpc.%s.svc" (include "shoal.fullname" .) .Release.Namespace) .Values.security.tls.serverName }}
{{- end }}

{{/* Flags of `shoal serve`, one a line. */}}
{{- define "shoal.flags" -}}
- --model={{ .Values.model.path }}
{{- with .Values.model.servedName }}
- --served-model-name={{ . }}
{{- end }}
- --host=0.0.0.0
- --port=8000
- --drain-timeout={{ .Values.drainTimeout }}
{{- with .Values.security.apiKeys }}
{{- if .secret }}
- --api-key-file=/etc/shoal/keys/{{ .key }}
- --open-health
{{- end }}
{{- end }}
{{- with .Values.security.tls }}
{{- if .secret }}
- --ssl-certfile=/etc/shoal/tls/tls.crt
- --ssl-keyfile=/etc/shoal/tls/tls.key
{{- with .clientCa }}
- --ssl-ca-certs=/etc/shoal/tls/{{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.metrics.enabled }}
- --metrics-host=0.0.0.0
- --metrics-port={{ .Values.metrics.port }}
{{- end }}
{{- if .Values.kvCheckpoint.existingClaim }}
- --kv-checkpoint-dir=/kv
- --kv-checkpoint-size={{ .Values.kvCheckpoint.size }}
{{- end }}
{{- range $name, $value := .Values.flags }}
- --{{ $name }}={{ $value }}
{{- end }}
{{- end }}

{{- define "shoal.podMetadata" -}}
labels:
  {{- include "shoal.selectorLabels" . | nindent 2 }}
  {{- with .Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What a pod has beside its container. */}}
{{- define "shoal.podSpec" -}}
serviceAccountName: {{ include "shoal.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
terminationGracePeriodSeconds: {{ add .Values.drainTimeout 30 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
volumes:
  - name: model
    {{- with .Values.model.volume }}
    {{- if .existingClaim }}
    persistentVolumeClaim:
      claimName: {{ .existingClaim }}
      readOnly: true
    {{- else if .hostPath }}
    hostPath:
      path: {{ .hostPath }}
      type: Directory
    {{- else if .nfs }}
    nfs:
      {{- toYaml .nfs | nindent 6 }}
      readOnly: true
    {{- end }}
    {{- end }}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ .Values.sharedMemory }}
  - name: tmp
    emptyDir: {}
  {{- with .Values.security.apiKeys.secret }}
  - name: keys
    secret:
      secretName: {{ . }}
      defaultMode: 0440
  {{- end }}
  {{- with .Values.security.tls.secret }}
  - name: tls
    secret:
      secretName: {{ . }}
      defaultMode: 0440
  {{- end }}
  {{- if gt (int .Values.nodes) 1 }}
  - name: ssh
    secret:
      secretName: {{ .Values.multiNode.sshSecret }}
      defaultMode: 0440
  {{- end }}
  {{- with .Values.kvCheckpoint.existingClaim }}
  - name: kv
    persistentVolumeClaim:
      claimName: {{ . }}
  {{- end }}
{{- end }}

{{/* The container; the caller adds command, args and probes. */}}
{{- define "shoal.container" -}}
name: shoal
image: {{ include "shoal.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: ["ALL"]
env:
  - name: HF_HOME
    value: /models
  {{- with .Values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $resources := deepCopy .Values.resources }}
{{- if gt (int .Values.gpusPerNode) 0 }}
{{- $limits := merge (dict "nvidia.com/gpu" .Values.gpusPerNode) (default dict $resources.limits) }}
{{- $_ := set $resources "limits" $limits }}
{{- end }}
{{- with $resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: model
    mountPath: /models
    readOnly: true
  - name: shm
    mountPath: /dev/shm
  - name: tmp
    mountPath: /tmp
  {{- if .Values.security.apiKeys.secret }}
  - name: keys
    mountPath: /etc/shoal/keys
    readOnly: true
  {{- end }}
  {{- if .Values.security.tls.secret }}
  - name: tls
    mountPath: /etc/shoal/tls
    readOnly: true
  {{- end }}
  {{- if gt (int .Values.nodes) 1 }}
  - name: ssh
    mountPath: /etc/shoal/ssh
    readOnly: true
  {{- end }}
  {{- if .Values.kvCheckpoint.existingClaim }}
  - name: kv
    mountPath: /kv
  {{- end }}
{{- end }}

{{/* Ports and probes of what serves. Kubernetes' gRPC probe knows no TLS: HTTP then, or `shoal health`. */}}
{{- define "shoal.serving" -}}
ports:
  - name: grpc
    containerPort: 8000
  {{- if .Values.metrics.enabled }}
  - name: metrics
    containerPort: {{ .Values.metrics.port }}
  {{- end }}
{{- $probe := dict "grpc" (dict "port" 8000) }}
{{- if .Values.security.tls.secret }}
{{- $command := list "shoal" "health" "--server=127.0.0.1:8000" "--tls" (printf "--tls-server-name=%s" (include "shoal.tlsName" .)) "--ssl-ca-certs=/etc/shoal/tls/ca.crt" }}
{{- if .Values.security.tls.clientCa }}
{{- $command = concat $command (list "--ssl-certfile=/etc/shoal/tls/tls.crt" "--ssl-keyfile=/etc/shoal/tls/tls.key") }}
{{- end }}
{{- $probe = ternary (dict "httpGet" (dict "path" "/ready" "port" "metrics")) (dict "exec" (dict "command" $command)) .Values.metrics.enabled }}
{{- end }}
startupProbe:
  {{- toYaml $probe | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 6
  failureThreshold: {{ div (add .Values.startupTimeout 4) 5 }}
readinessProbe:
  {{- toYaml $probe | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 6
  failureThreshold: 1
# The front end survives its ranks and starts them again by itself: only a port that is closed is a failure.
livenessProbe:
  tcpSocket:
    port: grpc
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}
