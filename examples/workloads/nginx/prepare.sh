#!/bin/sh
# Files of 32 KiB for each guest, by the guest's name: 360 and 154 MB.
set -eu
for files in large:11000 small:4700; do
    mkdir "/var/www/html/${files%:*}"
    cd "/var/www/html/${files%:*}"
    head -c "$((${files#*:} * 32768))" /dev/urandom | split -b 32768 -d -a 5
done
sed -i 's/access_log .*;/access_log off;/' /etc/nginx/nginx.conf
