#!/usr/bin/ruby
# program: ruby
# package: ruby ruby-net-ftp
# verbs: PASV PORT
require "net/ftp"
env = ENV
Net::FTP.open(env["HOST"], port: env["PORT"].to_i, username: env["LOGIN"],
              password: env["PASSWORD"], passive: env["VERB"] == "PASV", debug_mode: true,
              open_timeout: env["PATIENCE"].to_i, read_timeout: env["PATIENCE"].to_i) do |ftp|
  File.write("listing", ftp.list.join("\n"))
  ftp.getbinaryfile("small.bin")
  ftp.getbinaryfile("second.bin")
  ftp.putbinaryfile(env["UPLOAD"], env["TARGET"])
end
