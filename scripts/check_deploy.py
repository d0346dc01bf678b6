"""The checks of deploy/; scripts/check-deploy.sh installs what they need and starts them.

Usage: check_deploy.py BIN PORTOLAN    BIN: directory of kubectl and kubernetes-validate; PORTOLAN: the program
"""

import copy
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python
import yaml

BIN, PORTOLAN = Path(sys.argv[1]), sys.argv[2]
KUSTOMIZE = Path("deploy/kustomize")
CHART = "deploy/helm/portolan"
KUBEADM = "tests/fixtures/kubeadm-kube-proxy.yaml"
# Labels that Helm and kustomize each put on in their own way.
LABELS = ("app.kubernetes.io/", "helm.sh/")


def run(*command):
    """What a command prints on standard output; the end if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check-deploy: {' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def ensure(holds, sentence):
    if not holds:
        sys.exit(f"check-deploy: {sentence}")


def objects(text):
    """Objects by kind and name."""
    found = [item for item in yaml.safe_load_all(text) if item]
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


def kustomize(path):
    return objects(run(BIN / "kubectl", "kustomize", path))


def helm(values):
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(values=values, name="portolan", namespace="kube-system")
    return objects("\n---\n".join(rendered.values()))


def matches_schemas(found):
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(found.values(), file)
        file.flush()
        command = [BIN / "kubernetes-validate", "--strict", "-k", "1.36", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def comparable(found):
    """The same objects without labels of tools, and with the files of a ConfigMap as what they mean."""
    found = copy.deepcopy(found)
    for item in found.values():
        labels = item["metadata"].get("labels", {})
        labels = {key: value for key, value in labels.items() if not key.startswith(LABELS)}
        item["metadata"].pop("labels", None)
        if labels:
            item["metadata"]["labels"] = labels
        if item["kind"] == "ConfigMap":
            item["data"] = {name: yaml.safe_load(text) for name, text in item["data"].items()}
    return found


def check_permissions(name, found):
    """No permissions but those of kube-proxy, a container with two capabilities, and one with privileges that ends."""
    kinds = sorted(kind for kind, _ in found)
    ensure(kinds == ["ClusterRoleBinding", "ConfigMap", "DaemonSet", "ServiceAccount"], f"{name} has other objects: {kinds}")
    binding = found["ClusterRoleBinding", "portolan:node-proxier"]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node-proxier"}
    ensure(binding["roleRef"] == role, f"{name} binds to {binding['roleRef']}")
    account = {"kind": "ServiceAccount", "name": "portolan", "namespace": "kube-system"}
    ensure(binding["subjects"] == [account], f"{name} binds {binding['subjects']}")
    pod = found["DaemonSet", "portolan"]["spec"]["template"]["spec"]
    ensure(pod["serviceAccountName"] == "portolan", f"{name}: the pods have another service account")
    security = pod["containers"][0]["securityContext"]
    ensure(not security["privileged"] and security["readOnlyRootFilesystem"], f"{name}: the container may too much")
    ensure(security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}, f"{name}: other capabilities")
    (first,) = pod["initContainers"]
    ensure(first["command"][:2] == ["/usr/local/bin/portolan", "--init-only"], f"{name}: the first container does something else")
    ensure([mount["name"] for mount in first["volumeMounts"]] == ["config"], f"{name}: the first container has other mounts")
    ensure(first["securityContext"]["readOnlyRootFilesystem"] and first["volumeMounts"][0]["readOnly"], f"{name}: it may write")


def check_configuration(name, found):
    """portolan takes the configuration and has no remark on it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.conf"
        file.write_text(found["ConfigMap", "portolan"]["data"]["config.conf"])
        command = [PORTOLAN, "render", "--config", file, "--manifests", "deploy/demo", "--hostname-override", "node-1"]
        done = subprocess.run(command, capture_output=True, text=True)
    ensure(done.returncode == 0 and "KUBE-SERVICES" in done.stdout, f"{name}: portolan refuses config.conf\n{done.stderr}")
    ensure("WARN" not in done.stderr, f"{name}: portolan remarks on config.conf\n{done.stderr}")
    return done.stdout


def server(found):
    return yaml.safe_load(found["ConfigMap", "portolan"]["data"]["kubeconfig.conf"])["clusters"][0]["cluster"]["server"]


def check_all(name, found):
    valid, output = matches_schemas(found)
    ensure(valid, f"{name} does not match the schemas\n{output}")
    check_permissions(name, found)
    return check_configuration(name, found)


def check_kustomize():
    base = kustomize(KUSTOMIZE / "base")
    check_all("the base", base)
    # A check that lets a wrong field pass checks nothing.
    wrong = copy.deepcopy(base)
    pod = wrong["DaemonSet", "portolan"]["spec"]["template"]["spec"]
    pod["hostNetwrk"] = pod.pop("hostNetwork")
    ensure(not matches_schemas(wrong)[0], "an unknown field was not found")
    for name, address in (("kind", "https://kind-control-plane:6443"), ("k3s", "https://127.0.0.1:6444")):
        overlay = kustomize(KUSTOMIZE / "overlays" / name)
        check_all(f"the overlay {name}", overlay)
        ensure(server(overlay) == address, f"the overlay {name} has the API server at {server(overlay)}")
        alike = comparable(overlay)
        alike["ConfigMap", "portolan"]["data"]["kubeconfig.conf"]["clusters"][0]["cluster"]["server"] = server(base)
        ensure(alike == comparable(base), f"the overlay {name} changes more than the API server's address")
    kind = yaml.safe_load((KUSTOMIZE / "overlays/kind/cluster.yaml").read_text())
    ensure(kind["networking"] == {"kubeProxyMode": "none"}, "kind is to run without kube-proxy")
    return base


def check_kubeadm():
    """The patch of the kubeadm overlay gives kubeadm's DaemonSet another image and nothing else."""
    patch = KUSTOMIZE / "overlays/kubeadm/image.yaml"
    patched = objects(run(BIN / "kubectl", "patch", "--local", "-o", "yaml", "-f", KUBEADM, "--patch-file", patch))
    ensure(matches_schemas(patched)[0], "kubeadm's DaemonSet with another image does not match the schemas")
    wanted = objects(Path(KUBEADM).read_text())
    container = wanted["DaemonSet", "kube-proxy"]["spec"]["template"]["spec"]["containers"][0]
    ensure(container["image"] != "portolan:0.1.0", "the fixture has portolan's image already")
    container["image"] = "portolan:0.1.0"
    ensure(patched == wanted, "the kubeadm patch changes more than the image")


def check_helm(base):
    plain = helm({})
    ensure("KUBE-CLUSTER-IP" not in check_all("the chart", plain), "mode: iptables does not reach portolan")
    ensure(comparable(plain) == comparable(base), "the chart and the base give different objects")
    ensure(comparable(helm({"maxUnavailable": 2})) != comparable(base), "the comparison does not see a difference")
    values = {
        "image": {"repository": "registry.example/portolan", "tag": "x", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "pull"}],
        "apiServer": "https://[fd00::1]:6443",
        "mode": "ipvs",
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": "10.244.0.0/16,fd00:244::/56",
        "extraConfig": {"ipvs": {"scheduler": "lc"}},
        "ownConfig": {"fullSyncPeriod": "7m", "ipvs": {"vips": "addresses"}},
        "extraArgs": ["--ipvs-drain-timeout=2m"],
        "resources": {"limits": {"memory": "128Mi"}},
    }
    other = helm(values)
    rules = check_all("the chart with values", other)
    ensure("KUBE-CLUSTER-IP" in rules, "mode: ipvs does not reach portolan")
    own = list(yaml.safe_load_all(other["ConfigMap", "portolan"]["data"]["config.conf"]))[1]
    ensure(values["ownConfig"].items() <= own.items() and own["kind"] == "PortolanConfiguration", f"ownConfig is {own}")
    ensure(server(other) == values["apiServer"], "apiServer does not reach kubeconfig.conf")
    pod = other["DaemonSet", "portolan"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    images = {item["image"] for item in pod["containers"] + pod["initContainers"]}
    ensure(images == {"registry.example/portolan:x"}, f"the chart's images are {images}")
    for item in pod["containers"] + pod["initContainers"]:
        ensure(item["command"][-1] == "--ipvs-drain-timeout=2m", f"extraArgs does not reach the command of {item['name']}")
    ensure(container["resources"] == values["resources"] | {"requests": {"cpu": "50m", "memory": "48Mi"}}, "other resources")
    report = helm_python.lint(CHART)
    ensure(not report["errors"], f"helm lint: {report}")


check_helm(check_kustomize())
check_kubeadm()
print("deploy: base, overlays and chart match the schemas and each other, and portolan takes their configuration")
