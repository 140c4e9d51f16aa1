#!/usr/bin/env bash
# Of the Dockerfile's last stages: the libraries named in the file beside this script, mpirun, ssh for other
# nodes, and the user.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

export DEBIAN_FRONTEND=noninteractive
mapfile -t packages <"$here/packages"
apt-get update
apt-get install -y --no-install-recommends "${packages[@]}" \
  openmpi-bin openssh-client openssh-server ca-certificates
# Keys of hosts are made where they are used, not shared by everybody who has the image.
rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* /var/log/*.log /var/cache/debconf/*-old

# Ubuntu's images have a user 1000 of their own.
if other=$(getent passwd 1000); then userdel --remove "${other%%:*}" 2>/dev/null || true; fi
# "*": no password fits, and sshd does not take the account for a locked one.
useradd --uid 1000 --user-group --create-home --shell /bin/bash --password '*' shoal
