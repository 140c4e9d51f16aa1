"""The Dockerfile through hadolint, the compose file through Docker Compose, the chart through Helm's own
library and Kubernetes' schemas, and the flags that they all use through the program itself.
    images_and_charts_test.py ROOT SHOAL    (PYTHONPATH: what tools.sh printed)
"""
import json
import os
import pathlib
import re
import subprocess
import sys

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml

ROOT, SHOAL = pathlib.Path(sys.argv[1]), sys.argv[2]
TOOLS = pathlib.Path(helm.__file__).parent.parent / "bin"
CHART = str(ROOT / "deploy/helm/shoal")
KUBERNETES = "1.29"  # the oldest minor version that a cluster of this time has
failures = 0


def check(ok, what):
    global failures
    if not ok:
        failures += 1
        print("FAILED:", what)


def run(*command, **more):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **more)


# --- flags of the program: what files pass has to exist ---

HELP = run(SHOAL, "serve", "--help").stdout + run(SHOAL, "health", "--help").stdout
FLAGS = set(re.findall(r"--[a-z][a-z0-9-]*", HELP))
check(len(FLAGS) > 40, f"only {len(FLAGS)} flags in shoal serve --help")


def check_arguments(words, where):
    for word in words:
        if word.startswith("--"):
            check(word.split("=")[0] in FLAGS, f"{where}: shoal has no flag {word}")


def check_variables(names, where):
    others = {"SHOAL_SSH_KEY", "SHOAL_SSH_PORT", "SHOAL_NODE_WAIT"}
    for name in names:
        flag = "--" + name.removeprefix("SHOAL_").lower().replace("_", "-")
        check(not name.startswith("SHOAL_") or flag in FLAGS or name in others, f"{where}: no flag reads {name}")


# --- Dockerfile ---

dockerfile = ROOT / "deploy/docker/Dockerfile"
result = run(TOOLS / "hadolint", "--failure-threshold", "info", str(dockerfile))
check(result.returncode == 0, f"hadolint: {result.stdout}{result.stderr}")
text = dockerfile.read_text()
for target in ("cpu", "cuda"):
    stage = re.search(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM |\Z)", text, re.M | re.S)
    check(stage is not None, f"Dockerfile: no target {target}")
    for line in ("USER 1000:1000", "STOPSIGNAL SIGTERM", "HEALTHCHECK", 'ENTRYPOINT ["shoal"]'):
        check(line in stage.group(1), f"Dockerfile, {target}: no {line}")
    check_variables(re.findall(r"\bSHOAL_[A-Z_]+", stage.group(1)), f"Dockerfile, {target}")
for image in re.findall(r"^ARG \w+_IMAGE=(\S+)", text, re.M):
    check(re.search(r":[^:]*\d+\.\d+", image) is not None, f"Dockerfile: {image} is not pinned to a version")
sources = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M)
ignored = (ROOT / "deploy/docker/Dockerfile.dockerignore").read_text().split("\n")
for source in " ".join(sources).split():
    check(source == "." or (ROOT / source).exists(), f"Dockerfile: {source} is not there to be copied")
for folder in ("kernels", "parallel", "proto", "runtime", "server", "CMakeLists.txt"):
    check("!" + folder in ignored, f"Dockerfile.dockerignore leaves out {folder}, which the build needs")
check(ignored[1] == "*", "Dockerfile.dockerignore lets through what it does not name")

# --- compose ---

compose = ROOT / "deploy/docker-compose.yml"
environment = dict(os.environ, MODELS="/srv/models", SHOAL_MODEL="/models/m", GRAFANA_PASSWORD="x", COMPOSE_PROFILES="*")
result = run(TOOLS / "docker-compose", "-f", str(compose), "config", "--format", "json", env=environment)
check(result.returncode == 0, f"docker compose config: {result.stderr}")
if result.returncode == 0:
    services = json.loads(result.stdout)["services"]
    check({"prometheus", "grafana"} <= set(services), f"docker-compose.yml: services {sorted(services)}")
    for name, service in services.items():
        image = service["image"]
        check(":" in image and not image.endswith(":latest"), f"docker-compose.yml: {image} is not pinned")
        check(service.get("read_only") is True, f"docker-compose.yml, {name}: the root file system can be written")
        check(service.get("cap_drop") == ["ALL"], f"docker-compose.yml, {name}: keeps capabilities")
        check("no-new-privileges:true" in service.get("security_opt", []), f"docker-compose.yml, {name}: privileges")
        for port in service.get("ports", []):
            check(port.get("host_ip") == "127.0.0.1", f"docker-compose.yml, {name}: port {port} is open to all")
        for volume in service.get("volumes", []):
            if volume["type"] == "bind" and volume["source"].startswith(str(ROOT)):
                check(pathlib.Path(volume["source"]).exists(), f"docker-compose.yml, {name}: no {volume['source']}")
        if image.startswith("shoal"):
            check_arguments(service.get("command") or [], f"docker-compose.yml, {name}")
            check_variables(service.get("environment") or {}, f"docker-compose.yml, {name}")

# --- chart ---

BASE = {"model": {"volume": {"existingClaim": "models"}}, "security": {"apiKeys": {"secret": "keys"}}}
TLS = {"security": {"tls": {"secret": "tls", "clientCa": "clients.crt"}}}
NODES = {"nodes": 2, "gpusPerNode": 8, "ranksPerNode": 8, "multiNode": {"sshSecret": "ssh"}}
ALL = {"replicas": 3, "metrics": {"serviceMonitor": {"enabled": True}}, "image": {"tag": "1"},
       "flags": {"max-num-seqs": 128, "enable-dp-attention": True}, "resources": {"limits": {"memory": "64Gi"}},
       "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "priorityClassName": "p",
       "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "service": {"annotations": {"e": "f"}}}
KV = {"kvCheckpoint": {"existingClaim": "kv"}}
GOOD = {"one node": [BASE], "TLS": [BASE, TLS], "everything": [BASE, TLS, ALL], "several nodes": [BASE, NODES],
        "several nodes, everything": [BASE, NODES, TLS, ALL], "KV checkpoint": [BASE, KV],
        "host path": [{"model": {"volume": {"hostPath": "/m"}}, "security": {"allowWithoutKeys": True}}],
        "NFS": [{"model": {"volume": {"nfs": {"server": "s", "path": "/p"}}}, "security": {"allowWithoutKeys": True}}],
        "no extras": [BASE, {"metrics": {"enabled": False}, "podDisruptionBudget": {"enabled": False},
                             "networkPolicy": {"enabled": False}, "serviceAccount": {"create": False}}]}
BAD = {"no volume": [{"security": {"apiKeys": {"secret": "k"}}}], "open to all": [{"model": {"volume": {"hostPath": "/m"}}}],
       "two volumes": [BASE, {"model": {"volume": {"hostPath": "/m"}}}], "unknown value": [BASE, {"replica": 2}],
       "wrong type": [BASE, {"replicas": "two"}], "reserved flag": [BASE, {"flags": {"host": "::"}}],
       "ranks without GPUs": [BASE, {"gpusPerNode": 1, "ranksPerNode": 2}],
       "nodes without a key": [BASE, {"nodes": 2}], "KV of two": [BASE, KV, {"replicas": 2}],
       "KV of nodes": [BASE, NODES, KV], "low port": [BASE, {"metrics": {"port": 80}}]}


def merged(parts):
    def merge(a, b):
        both = dict(a)
        for key, value in b.items():
            old = both.get(key)
            both[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        return both

    result = {}
    for part in parts:
        result = merge(result, part)
    return result


class UniqueKeys(yaml.SafeLoader):
    """YAML as Kubernetes takes it: no key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.YAMLError(f"a key twice: {keys}")
        return super().construct_mapping(node, deep)


def render(parts):
    with helm.Chart.load(CHART) as chart:
        return chart.render(merged(parts), name="demo", namespace="prod")


def pods_of(document):
    kind = document["kind"]
    if kind == "Pod":
        return [document["spec"]]
    if kind == "StatefulSet":
        return [document["spec"]["template"]["spec"]]
    if kind == "LeaderWorkerSet":
        template = document["spec"]["leaderWorkerTemplate"]
        return [template[role + "Template"]["spec"] for role in ("leader", "worker")]
    return []


def validate(document, where):
    if document["apiVersion"] in ("leaderworkerset.x-k8s.io/v1", "monitoring.coreos.com/v1"):
        # No schemas of these to be had here; pods of the first are validated as such.
        for number, spec in enumerate(pods_of(document)):
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"p{number}"}, "spec": spec}, where)
        return
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except Exception as error:  # of several libraries
        check(False, f"{where}: {document['kind']}: {error}")


for name, parts in GOOD.items():
    kinds = []
    for path, manifest in render(parts).items():
        if not path.endswith(".yaml"):
            continue
        for document in yaml.load_all(manifest, UniqueKeys):
            if document is None:
                continue
            where = f"chart, {name}, {path}"
            kinds.append(document["kind"])
            validate(document, where)
            for spec in pods_of(document):
                check(spec["securityContext"]["runAsNonRoot"] is True, f"{where}: runs as root")
                check(spec["automountServiceAccountToken"] is False, f"{where}: has a token")
                for container in spec["containers"]:
                    context = container["securityContext"]
                    check(context["readOnlyRootFilesystem"] is True and context["capabilities"] == {"drop": ["ALL"]}
                          and context["allowPrivilegeEscalation"] is False, f"{where}: {context}")
                    probe = container.get("startupProbe", {}).get("exec", {}).get("command", [])
                    check_arguments(container["args"] + probe, where)
                    mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
                    check(mounts == {volume["name"] for volume in spec.get("volumes", [])}, f"{where}: mounts {mounts}")
                if document["kind"] != "Pod":
                    check(spec["terminationGracePeriodSeconds"] > 30, f"{where}: no time to drain")
                    shm = [v for v in spec["volumes"] if v["name"] == "shm"]
                    check(shm and shm[0]["emptyDir"]["medium"] == "Memory", f"{where}: no /dev/shm")
    several = merged(parts).get("nodes", 1) > 1
    check(("LeaderWorkerSet" in kinds) == several and ("StatefulSet" in kinds) != several, f"chart, {name}: {kinds}")
    check(("ServiceMonitor" in kinds) == ("everything" in name), f"chart, {name}: {kinds}")

for name, parts in BAD.items():
    try:
        with helm.Chart.load(CHART) as chart:
            chart.validate_schema(merged(parts))
            chart.render(merged(parts), name="demo", namespace="prod")
        check(False, f"chart: {name} was accepted")
    except helm.HelmError:
        pass

jsonschema.Draft7Validator.check_schema(json.loads(pathlib.Path(CHART, "values.schema.json").read_text()))
print(f"{len(GOOD)} sets of values, {len(BAD)} refused, {len(FLAGS)} flags, {failures} failures")
sys.exit(1 if failures else 0)
