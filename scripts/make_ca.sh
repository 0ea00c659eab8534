#!/usr/bin/env bash
# Makes a private certificate authority and a certificate for every service, for TLS and mutual TLS.
#
# Usage: scripts/make_ca.sh [-t DAYS] [DIR [NAME...]]
#   -t DAYS  how long the certificates are valid, default 825; the authority: ten years
#   DIR      where the files go, default secrets/tls; what is above it must exist (`madpo init` makes secrets/)
#   NAME     another name or IP address of the gateway's machine, e.g. gpu-host.example.org 10.0.0.7
#
# Makes DIR/ca.crt, DIR/ca.key and DIR/{gateway,reward,trainer,evaluator,client}.{crt,key}, and never replaces one: to
# renew a certificate move it and its key away, and run this again. ca.key signs certificates and belongs on no server.
set -euo pipefail
umask 077

fail() { echo "${0##*/}: $1" >&2; exit 1; }

days=825
while getopts t: option; do
  [[ $option == t ]] || { echo "usage: ${0##*/} [-t DAYS] [DIR [NAME...]]" >&2; exit 2; }
  days=$OPTARG
done
shift $((OPTIND - 1))
directory=${1:-secrets/tls}
names=("${@:2}")

command -v openssl > /dev/null || fail "openssl is not installed"
parent=$(dirname "$directory")
[[ -d $parent ]] || fail "there is no $parent; run \`madpo init\` first, or name another place"
mkdir -p "$directory"
# Files are made here and moved to their place: a failure leaves no half of a pair behind.
scratch=$(mktemp -d "$directory/.new.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# quietly COMMAND...: its messages only when it fails.
quietly() { "$@" 2> "$scratch/log" || { cat "$scratch/log" >&2; fail "openssl failed"; }; }

# kept NAME: whether the certificate and its key are there; half of a pair is an error.
kept() {
  [[ -e $directory/$1.crt || -e $directory/$1.key ]] || return 1
  [[ -e $directory/$1.crt ]] || fail "$directory has $1.key but no $1.crt; move it away to make both anew"
  [[ -e $directory/$1.key || $1 == ca ]] || fail "$directory has $1.crt but no $1.key; move it away to make both anew"
  echo "kept $directory/$1.crt"
}

place() {
  mv "$scratch/$1.key" "$scratch/$1.crt" "$directory/"
  echo "made $directory/$1.crt"
}

new_key() { quietly openssl ecparam -name prime256v1 -genkey -noout -out "$scratch/$1.key"; }

make_authority() {
  new_key ca
  quietly openssl req -x509 -new -sha256 -key "$scratch/ca.key" -out "$scratch/ca.crt" -days 3650 \
    -subj "/CN=madpo private CA" -addext "basicConstraints=critical,CA:true,pathlen:0" \
    -addext "keyUsage=critical,keyCertSign,cRLSign"
  place ca
}

alternative_names() {
  local name list="DNS:$1,DNS:localhost,IP:127.0.0.1,IP:::1"
  for name in "${names[@]}"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then list+=",IP:$name"; else list+=",DNS:$name"; fi
  done
  echo "$list"
}

make_certificate() {
  [[ -e $directory/ca.key ]] || fail "$directory has no ca.key to sign $1.crt with; bring it back for this run"
  new_key "$1"
  cat > "$scratch/extensions" << END
basicConstraints=critical,CA:false
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
subjectAltName=$(alternative_names "$1")
END
  quietly openssl req -new -sha256 -key "$scratch/$1.key" -subj "/CN=$1" -out "$scratch/request"
  quietly openssl x509 -req -sha256 -in "$scratch/request" -CA "$directory/ca.crt" -CAkey "$directory/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$scratch/extensions" -out "$scratch/$1.crt"
  place "$1"
}

kept ca || make_authority
for service in gateway reward trainer evaluator client; do
  kept "$service" || make_certificate "$service"
done
if [[ $(id -u) == 0 ]]; then
  # Containers run as the owner of the secrets; the authority's key stays with root.
  chown "$(stat -c %u:%g "$parent")" "$directory" "$directory"/*.crt "$directory"/*.key
  [[ ! -e $directory/ca.key ]] || chown 0:0 "$directory/ca.key"
fi
