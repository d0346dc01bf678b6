# Fetches Debian's stock kernel and unpacks of it what the lab needs. Argument: the directory that will hold `boot` and
# `lib/modules`, and is there only when it is complete. Installs nothing.
set -eu
place=$1
draft=$(mktemp -d "$place.XXXXXX")
trap 'rm -rf "$draft"' EXIT
package() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1; }
fetch() {
    name=$(package)
    [ -n "$name" ] || return 1
    (cd "$draft" && apt-get download --quiet=2 --option APT::Sandbox::User=root "$name")
}
# Package lists may be there and current; only when they are not are they fetched.
fetch 2>/dev/null || { apt-get update --quiet=2 && fetch; }
mkdir "$draft/tree"
dpkg-deb --fsys-tarfile "$draft"/*.deb | tar -x -C "$draft/tree" --wildcards \
    './boot/vmlinuz-*' './lib/modules/*/modules.*' './lib/modules/*/kernel/arch/*' './lib/modules/*/kernel/crypto/*' \
    './lib/modules/*/kernel/fs/*' './lib/modules/*/kernel/lib/*' './lib/modules/*/kernel/net/*' './lib/modules/*/kernel/mm/*' \
    './lib/modules/*/kernel/drivers/char/*' './lib/modules/*/kernel/drivers/net/*.ko*' \
    './lib/modules/*/kernel/drivers/virtio/*'
depmod -b "$draft/tree" "$(ls "$draft/tree/lib/modules")"
mv -T "$draft/tree" "$place"
