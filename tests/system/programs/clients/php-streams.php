#!/usr/bin/php
<?php
# program: php
# package: php-cli
# verbs: EPSV
function must($result) { $result !== false or exit(1); return $result; }
$url = getenv("URL_WITH_LOGIN");
file_put_contents("listing", implode("\n", must(scandir("$url/"))));
foreach (["small.bin", "second.bin"] as $file) {
    must(copy("$url/$file", $file));
}
must(copy(getenv("UPLOAD"), "$url/" . getenv("TARGET")));
