#!/usr/bin/env bash
# Builds the static, stripped program of the image and prints its path. It runs in an empty root: glibc's resolver for
# files and DNS is part of it. The same program with its symbols stays beside it, as portolan.symbols, for profiles.
#
# Usage: deploy/image/build.sh [PROFILE]    PROFILE: a cargo profile; without: release
# Fails if the program is not static, or if that of the release is larger than $limit bytes.
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${1:-release}
limit=12000000
target=$(uname -m)-unknown-linux-gnu
# A directory of its own: other flags would make cargo build everything anew, each time.
directory=${CARGO_TARGET_DIR:-target}/image/build
# The target is named so that the flags do not reach build scripts and procedural macros, which cannot be static.
# The table of relocations is packed: 0.4 MB less, and glibc's start-up code knows it since 2.36.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" cargo rustc --locked --profile "$profile" \
    --config "profile.$profile.strip=false" --bin portolan --target "$target" --target-dir "$directory" \
    -- -C link-arg=-Wl,-z,pack-relative-relocs >&2
built=$directory/$target/${profile/#dev/debug}/portolan
program=${CARGO_TARGET_DIR:-target}/image/$profile/portolan
mkdir -p "${program%/*}"
ln -f "$built" "$program.symbols"
strip --strip-all -o "$program" "$built"

if headers=$(readelf --program-headers --wide "$program") && grep -q INTERP <<<"$headers"; then
    echo "build.sh: $program is not static: it asks for an interpreter" >&2
    exit 1
fi
if readelf --dynamic --wide "$program" | grep NEEDED >&2; then
    echo "build.sh: $program is not static: it needs these libraries" >&2
    exit 1
fi
size=$(stat --format %s "$program")
echo "static program: $size bytes" >&2
if [[ $profile == release ]] && ((size > limit)); then
    echo "build.sh: that is more than $limit bytes" >&2
    exit 1
fi
echo "$program"
