#!/usr/bin/php
<?php
# program: php
# package: php-cli
# verbs: PASV PORT
function must($result) { $result !== false or exit(1); return $result; }
$ftp = must(ftp_connect(getenv("HOST"), (int) getenv("PORT"), (int) getenv("PATIENCE")));
must(ftp_login($ftp, getenv("LOGIN"), getenv("PASSWORD")));
must(ftp_pasv($ftp, getenv("VERB") == "PASV"));
file_put_contents("listing", implode("\n", must(ftp_rawlist($ftp, "."))));
foreach (["small.bin", "second.bin"] as $file) {
    must(ftp_get($ftp, $file, $file, FTP_BINARY));
}
must(ftp_put($ftp, getenv("TARGET"), getenv("UPLOAD"), FTP_BINARY));
ftp_close($ftp);
