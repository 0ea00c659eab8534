#!/bin/sh
# Makes the bucket, and one user a service that may do what its work needs and no more. May be run again.
set -eu
secret() { cat "/run/secrets/$1"; }

MC_CONFIG_DIR=$(mktemp -d)
MC_HOST_store="http://$(secret minio_root_user):$(secret minio_root_password)@minio:9000"
export MC_CONFIG_DIR MC_HOST_store

mc mb --ignore-existing store/madpo
for service in gateway reward trainer evaluator; do
  # Both lines are read from standard input: arguments can be seen by others.
  printf '%s\n%s\n' "$(secret "s3_${service}_access_key")" "$(secret "s3_${service}_secret_key")" |
    mc admin user add store
  mc admin policy create store "madpo-$service" "/policies/$service.json"
  mc admin policy attach store "madpo-$service" --user "$(secret "s3_${service}_access_key")" ||
    mc admin user info store "$(secret "s3_${service}_access_key")" | grep -q "madpo-$service"
done
