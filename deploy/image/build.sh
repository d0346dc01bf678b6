#!/usr/bin/env bash
# Builds the static, stripped program of the image and prints its path. It runs in an empty root: glibc's resolver for
# files and DNS is part of it.
#
# Usage: deploy/image/build.sh [PROFILE]    PROFILE: a cargo profile; without: release
# Fails if the program is not static, or if that of the release is larger than $limit bytes.
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${1:-release}
limit=$((12 * 1024 * 1024))
target=$(uname -m)-unknown-linux-gnu
# A directory of its own: other flags would make cargo build everything anew, each time.
directory=${CARGO_TARGET_DIR:-target}/image/build
# The target is named so that the flags do not reach build scripts and procedural macros, which cannot be static.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static -C strip=symbols" \
    cargo build --locked --profile "$profile" --bin portolan --target "$target" --target-dir "$directory" >&2
[[ $profile != dev ]] || profile=debug
program=$directory/$target/$profile/portolan

if headers=$(readelf --program-headers --wide "$program") && grep -q INTERP <<<"$headers"; then
    echo "build.sh: $program is not static: it asks for an interpreter" >&2
    exit 1
fi
if readelf --dynamic --wide "$program" | grep NEEDED >&2; then
    echo "build.sh: $program is not static: it needs these libraries" >&2
    exit 1
fi
size=$(stat --format %s "$program")
awk -v size="$size" 'BEGIN { printf "static program: %d bytes (%.1f MiB)\n", size, size / 1048576 }' >&2
if [[ $profile == release ]] && ((size > limit)); then
    echo "build.sh: that is more than $limit bytes" >&2
    exit 1
fi
echo "$program"
