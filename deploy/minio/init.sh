#!/bin/sh
# Makes the bucket, and one user a service that may do what its work needs and no more. May be run again: keys that were
# changed are set anew, and those they replace are revoked. The image has no grep, sed or awk.
set -eu
secret() { cat "${SECRETS:-/run/secrets}/$1"; }

MC_CONFIG_DIR=$(mktemp -d)
MC_HOST_store="http://$(secret minio_root_user):$(secret minio_root_password)@minio:9000"
export MC_CONFIG_DIR MC_HOST_store

mc mb --ignore-existing store/madpo
current=" "
for service in gateway reward trainer evaluator; do
  user=$(secret "s3_${service}_access_key")
  # Both lines are read from standard input: arguments can be seen by others.
  printf '%s\n%s\n' "$user" "$(secret "s3_${service}_secret_key")" | mc admin user add store
  mc admin policy create store "madpo-$service" "${POLICIES:-/policies}/$service.json"
  mc admin policy attach store "madpo-$service" --user "$user"
  current="$current$user "
done

# Names of more than 20 characters are listed cut short, and are not ours.
mc admin user list store > "$MC_CONFIG_DIR/users"
while read -r _ user policy; do
  case "$policy $user" in
    *...) ;;
    madpo-*) case "$current" in *" $user "*) ;; *) mc admin user remove store "$user" ;; esac ;;
  esac
done < "$MC_CONFIG_DIR/users"
