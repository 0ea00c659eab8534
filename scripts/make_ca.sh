#!/usr/bin/env bash
# Makes a private certificate authority and a certificate for every service, for TLS and mutual TLS.
#
# Usage: scripts/make_ca.sh [-d DIR] [-t DAYS] [NAME...]
#   -d DIR   where the files go, default secrets/tls; what is above it must exist (`madpo init` makes secrets/)
#   -t DAYS  how long the certificates are valid, default 825; the authority ten years
#   NAME     another name or IP address of the gateway, e.g. gpu-host.example.org 10.0.0.7; every certificate gets it
#
# Writes DIR/ca.crt, DIR/ca.key and DIR/{gateway,reward,trainer,evaluator,client}.{crt,key}. Refuses when DIR exists:
# to renew, move it away first. ca.key signs new certificates and belongs on no server.
set -euo pipefail

directory=secrets/tls
days=825
while getopts d:t: option; do
  case $option in
    d) directory=$OPTARG ;;
    t) days=$OPTARG ;;
    *) echo "usage: ${0##*/} [-d DIR] [-t DAYS] [NAME...]" >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))

fail() { echo "${0##*/}: $1" >&2; exit 1; }
command -v openssl > /dev/null || fail "openssl is not installed"
parent=$(dirname "$directory")
[[ -d $parent ]] || fail "there is no $parent; run \`madpo init\` first, or give another place with -d"
[[ ! -e $directory ]] || fail "$directory exists and is never overwritten; move it away, or give another place with -d"

# Made beside its place and moved there whole: a failure leaves nothing behind.
umask 077
scratch=$(mktemp -d "$parent/.tls.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

new_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$scratch/$1.key"; }

alternative_names() {
  local name names="DNS:$1,DNS:localhost,IP:127.0.0.1,IP:::1"
  for name in "${@:2}"; do
    if [[ $name =~ ^[0-9.]+$ || $name == *:* ]]; then names+=",IP:$name"; else names+=",DNS:$name"; fi
  done
  echo "$names"
}

authority() {
  new_key ca
  openssl req -x509 -new -sha256 -key "$scratch/ca.key" -out "$scratch/ca.crt" -days 3650 -subj "/CN=madpo private CA" \
    -addext "basicConstraints=critical,CA:true,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign"
}

certificate() {
  local service=$1
  new_key "$service"
  openssl req -new -sha256 -key "$scratch/$service.key" -subj "/CN=$service" |
    openssl x509 -req -sha256 -CA "$scratch/ca.crt" -CAkey "$scratch/ca.key" -days "$days" -out "$scratch/$service.crt" \
      -set_serial "0x$(openssl rand -hex 16)" -extfile <(
        echo "basicConstraints=critical,CA:false"
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=serverAuth,clientAuth"
        echo "subjectKeyIdentifier=hash"
        echo "authorityKeyIdentifier=keyid"
        echo "subjectAltName=$(alternative_names "$@")"
      ) 2> "$scratch/log" || { cat "$scratch/log" >&2; fail "no certificate for $service"; }
  rm "$scratch/log"
}

authority
for service in gateway reward trainer evaluator client; do
  certificate "$service" "$@"
done
if [[ $(id -u) == 0 ]]; then
  # Containers run as the owner of the secrets; the authority's key stays with root.
  chown "$(stat -c %u:%g "$parent")" "$scratch" "$scratch"/*.crt "$scratch"/*.key
  chown 0:0 "$scratch/ca.key"
fi
mv -T "$scratch" "$directory"
trap - EXIT
echo "made $directory: ca.crt for clients, a certificate and key for each service, valid for $days days"
