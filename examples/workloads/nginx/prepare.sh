#!/bin/sh
# Files of 32 KiB for each guest, by the guest's name: 328 and 115 MB.
set -eu
for files in large:10000 small:3500; do
    mkdir "/var/www/html/${files%:*}"
    cd "/var/www/html/${files%:*}"
    head -c "$((${files#*:} * 32768))" /dev/urandom | split -b 32768 -d -a 5
done
sed -i 's/access_log .*;/access_log off;/' /etc/nginx/nginx.conf
