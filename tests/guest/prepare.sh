#!/usr/bin/env bash
# What the guests of the tests boot: DIRECTORY/HASH/vmlinuz (Debian's cloud kernel, unpacked from its package, never
# installed) and DIRECTORY/HASH/initrd (busybox, drivers, ./init). Made once; prints that path. Calls may run side by side.
# Exit status 3: something cannot be had here, so guests cannot be booted. Anything else but 0 is a fault.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
directory=${1:?usage: prepare.sh DIRECTORY}
missing() {
    echo "$1" >&2
    exit 3
}
for tool in qemu-system-x86_64 busybox cpio apt-get dpkg gzip; do
    command -v "$tool" >/dev/null || missing "$tool is not installed"
done
# The guest has no libraries.
if ldd "$(command -v busybox)" >/dev/null 2>&1; then missing "busybox is not static: install busybox-static"; fi
hash=$(cat "$here/init" "$here/prepare.sh" | sha256sum | cut -c1-12)
image=$directory/$hash
if [ -e "$image/initrd" ]; then
    echo "$image"
    exit 0
fi

mkdir -p "$directory"
work=$(mktemp -d "$directory/.new-XXXXXX")
trap 'rm -rf "$work"' EXIT
fetch() {
    local package
    # The name without a version is a metapackage; the kernel is what it depends on.
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: *\(linux-image-[0-9][^ ]*\)$/\1/p' | head -n 1)
    [ -n "$package" ] && (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$package" >&2)
}
fetch || { apt-get update -q >&2 && fetch; } || missing "the package of linux-image-cloud-amd64 cannot be downloaded"
dpkg -x "$work"/*.deb "$work/package"

mkdir -p "$work/image" "$work/root/bin" "$work/root/modules"
cp "$work"/package/boot/vmlinuz-* "$work/image/vmlinuz"
cp "$(command -v busybox)" "$work/root/bin/busybox"
cp "$here/init" "$work/root/init"
chmod 755 "$work/root/init"
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_console virtio_net \
    llc stp garp mrp 8021q; do
    file=$(find "$work/package/lib/modules" -name "$module.ko*" | head -n 1)
    case $file in
        '') continue ;; # built in
        *.ko) cp "$file" "$work/root/modules/" ;;
        *.xz) xz -dc "$file" >"$work/root/modules/$module.ko" ;;
        *) echo "$file is packed in an unknown way" >&2; exit 1 ;;
    esac
    echo "$module" >>"$work/root/modules/order"
done
(cd "$work/root" && find . | cpio -o -H newc 2>/dev/null) | gzip -1 >"$work/image/initrd"
# Whoever is second finds it there.
mv -T "$work/image" "$image" 2>/dev/null || [ -e "$image/initrd" ]
echo "$image"
