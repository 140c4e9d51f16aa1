#!/bin/sh
# check_layering.sh ROOT: fails, naming file and line, when a source file under ROOT
#   - includes a file of a layer to its right:  kernels <- parallel <- runtime <- server <- tests
#     (the generated gRPC headers, *.pb.h, belong to server),
#   - includes by a relative path, which hides the layer, or
#   - uses a name of a back end outside the back end's folder. Names in comments and strings are free.
set -eu
root=${1:?usage: check_layering.sh ROOT}
cd "$root"

layers=""
for layer in kernels parallel runtime server; do
  [ -d "$layer" ] && layers="$layers $layer"
done
files=$(mktemp)
trap 'rm -f "$files"' EXIT
[ -z "$layers" ] || find $layers -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \
  -o -name '*.cuh' \) | sort > "$files"
if [ ! -s "$files" ]; then
  echo "no sources under $root: nothing was checked"
  exit 2
fi

xargs awk '
function report(text) {
  printf "%s:%d: %s\n", FILENAME, FNR, text
  failures = 1
}
# The layer number of a path, 0 if it is none of ours.
function layer_of(path) {
  if (path ~ /\.pb\.h$/) return 4
  sub(/\/.*/, "", path)
  return (path in number) ? number[path] : 0
}
# The line without comments and the insides of string and character literals. The digit separator of
# 10'\''000 is no literal. in_comment carries /* .. */ from line to line.
function code_of(line,    out, c, pair, quote, i, n) {
  out = ""
  n = length(line)
  for (i = 1; i <= n; ++i) {
    c = substr(line, i, 1)
    pair = substr(line, i, 2)
    if (in_comment) {
      if (pair == "*/") { in_comment = 0; ++i }
    } else if (pair == "//") {
      break
    } else if (pair == "/*") {
      in_comment = 1
      ++i
    } else if (c == "\"" || (c == "\047" && out !~ /[0-9A-Fa-f]$/)) {
      quote = c
      for (++i; i <= n && substr(line, i, 1) != quote; ++i) {
        if (substr(line, i, 1) == "\\") ++i
      }
      out = out " "
    } else {
      out = out c
    }
  }
  return out
}
function check_name(code, names, allowed, what) {
  if (code ~ ("(^|[^A-Za-z0-9_])(" names ")") && FILENAME !~ allowed) {
    report(what " name outside its folder: " code)
  }
}
BEGIN {
  number["kernels"] = 1; number["parallel"] = 2; number["runtime"] = 3; number["server"] = 4
  number["tests"] = 5
}
FNR == 1 { in_comment = 0 }
/^[ \t]*#[ \t]*include[ \t]*["<]/ && !in_comment {
  path = $0
  sub(/^[ \t]*#[ \t]*include[ \t]*["<]/, "", path)
  sub(/[">].*/, "", path)
  if (path ~ /^\.\.?\//) report("relative include of " path)
  if (layer_of(path) > layer_of(FILENAME)) report("upward include of " path)
  check_name(path, "mpi\\.h|parallel/mpi/", mpi, "MPI")
  check_name(path, "cuda|cublas|kernels/cuda/", cuda, "CUDA")
  check_name(path, "nccl|parallel/nccl/", nccl, "NCCL")
  check_name(path, "kernels/cpu/", "^(kernels/cpu/|runtime/backend[.])", "CPU back end")
  next
}
{
  code = code_of($0)
  check_name(code, "MPI_|OMPI_|Mpi[A-Z]", mpi, "MPI")
  check_name(code, "cuda[A-Z_]|cublas|Cuda[A-Z]|CUDA_|CUBLAS|cu[A-Z][a-z]|__global__", cuda, "CUDA")
  check_name(code, "nccl|Nccl[A-Z]|NCCL_", nccl, "NCCL")
}
END { exit failures }
' mpi='^(parallel/mpi/|runtime/backend[.])' \
  cuda='^(kernels/cuda/|parallel/nccl/|runtime/backend[.])' \
  nccl='^(parallel/nccl/|runtime/backend[.])' < "$files" || {
  echo "layering is broken: see docs/architecture.md"
  exit 1
}
echo "$(wc -l < "$files") files, no upward include, no back-end name outside its folder"
