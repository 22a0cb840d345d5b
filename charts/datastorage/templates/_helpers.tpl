{{- define "datastorage.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels by which pods are selected; a dict of `root` and `component`. */}}
{{- define "datastorage.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of pods that run on: without versions, so that an upgrade that changes nothing else restarts none. */}}
{{- define "datastorage.podLabels" -}}
{{ include "datastorage.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{- define "datastorage.labels" -}}
{{ include "datastorage.podLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "datastorage.image" -}}
{{ .Values.image.repository }}{{ with .Values.image.digest }}@{{ . }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "datastorage.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (ternary (include "datastorage.name" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "datastorage.workloadKind" -}}
{{ ternary "StatefulSet" "Deployment" (eq .Values.spool.kind "persistent") }}
{{- end }}

{{/* What the restricted profile requires of every container. */}}
{{- define "datastorage.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Whether callers authenticate with tokens of Kubernetes. */}}
{{- define "datastorage.asksKubernetes" -}}
{{ if has "kubernetes" (splitList "," (.Values.settings.auth | nospace)) }}true{{ end }}
{{- end }}

{{/* How a container gets its database's URL; a dict of `root` and `secret`. That of an external database is read from a file. */}}
{{- define "datastorage.databaseEnv" -}}
{{- if .root.Values.postgres.enabled -}}
- name: POSTGRES_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "datastorage.postgresSecret" .root }}, key: password}
- name: DATASTORAGE_DATABASE_URL
  value: postgresql://{{ .root.Values.postgres.user }}:$(POSTGRES_PASSWORD)@{{ include "datastorage.name" .root }}-postgres:5432/{{ .root.Values.postgres.database }}
{{- else -}}
- {name: DATASTORAGE_DATABASE_URL_FILE, value: /etc/datastorage/database/{{ .secret.key }}}
{{- if .root.Values.database.caSecret.name }}
- {name: PGSSLROOTCERT, value: /etc/datastorage/database-ca/{{ .root.Values.database.caSecret.key }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "datastorage.databaseMount" -}}
{{- if not .Values.postgres.enabled -}}
- {name: database, mountPath: /etc/datastorage/database, readOnly: true}
{{- if .Values.database.caSecret.name }}
- {name: database-ca, mountPath: /etc/datastorage/database-ca, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- define "datastorage.databaseVolume" -}}
{{- if not .root.Values.postgres.enabled -}}
- name: database
  secret: {secretName: {{ .secret.name }}}
{{- with .root.Values.database.caSecret.name }}
- name: database-ca
  secret: {secretName: {{ . }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "datastorage.postgresSecret" -}}
{{ .Values.postgres.existingSecret | default (printf "%s-postgres" (include "datastorage.name" .)) }}
{{- end }}

{{/* What pods that run one command have in common. */}}
{{- define "datastorage.commandPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The same for their containers; a dict of `root` and `secret`. */}}
{{- define "datastorage.commandContainer" -}}
image: {{ include "datastorage.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ include "datastorage.containerSecurity" .root }}
env:
  {{- with .root.Values.settings.log_name }}
  - {name: DATASTORAGE_LOG_NAME, value: {{ . | quote }}}
  {{- end }}
  {{- include "datastorage.databaseEnv" . | nindent 2 }}
resources:
  requests: {cpu: 100m, memory: 128Mi}
  limits: {memory: 512Mi}
volumeMounts:
  {{- include "datastorage.databaseMount" .root | nindent 2 }}
{{- end }}

{{/* Where the service's `files` are, and the volumes that they come from. */}}
{{- define "datastorage.fileMounts" -}}
{{- range $i, $file := .Values.files }}
- {name: file-{{ $i }}, mountPath: /etc/datastorage/{{ $file.setting }}, readOnly: true}
{{- end }}
{{- end }}

{{- define "datastorage.fileVolumes" -}}
{{- range $i, $file := .Values.files }}
- name: file-{{ $i }}
  {{- if hasKey $file "secret" }}
  secret: {secretName: {{ $file.secret }}}
  {{- else }}
  configMap: {name: {{ $file.configMap }}}
  {{- end }}
{{- end }}
{{- end }}

{{/* Bytes of a quantity of Kubernetes, such as 2Gi, as text. */}}
{{- define "datastorage.bytes" -}}
{{- $units := dict "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "" 1.0 }}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $units (regexFind "[A-Za-z]*$" .)) | int64 }}
{{- end }}

{{/*
Refuses what the API server would refuse without saying what to do: a StatefulSet's claims cannot be changed. A dict of `root`, the name of
the `workload`, and the `values` (size, storageClassName) that stand under `prefix`. Asks the cluster, so it sees nothing in `helm template`.
*/}}
{{- define "datastorage.sameClaim" -}}
{{- $found := lookup "apps/v1" "StatefulSet" .root.Release.Namespace .workload }}
{{- if $found }}
{{- $claim := (first $found.spec.volumeClaimTemplates).spec }}
{{- $size := $claim.resources.requests.storage }}
{{- $class := $claim.storageClassName | default "" }}
{{- if or (ne (include "datastorage.bytes" $size) (include "datastorage.bytes" .values.size)) (ne $class .values.storageClassName) }}
{{- fail (printf "%s.size and %s.storageClassName cannot be changed by an upgrade: the StatefulSet %s has %s and the class %q. Resize the volumes and delete the StatefulSet without its pods first, as \"Resize the volumes\" in docs/operations.md says." .prefix .prefix .workload $size $class) }}
{{- end }}
{{- end }}
{{- end }}
