#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# External data files: which of them are opened, what is refused and how, and
# what is served of images that QEMU made.

. ./functions.sh

requires_python_nbd
requires_qemu
requires nbdcopy --version
requires nbdinfo --version

export PYTHON
tool="$abs_top_builddir/tool/nbdkit-qcow2-tool"
cd "$tmp"
mkdir d out

# image FILE DATA [OPTION...]: with an external data file.
image ()
{
    local file="$1" data="$2" option options
    shift 2
    options="data_file=$data"
    for option in "$@"; do
        options="$options,$option"
    done
    qemu-img create -q -f qcow2 -o "$options" "$file" 5M
}

# fill FILE: requests of all kinds.
fill ()
{
    qemu-io -f qcow2 -c 'write -P 1 0 100k' -c 'write -P 2 2M 1M' \
        -c 'write -P 3 5119k 1k' -c 'write -z -u 2200k 300k' \
        -c 'write -z 2600k 70k' -c 'discard 0 8k' "$1" > io ||
        die "$(cat io)"
}

# served FILE NBDKIT-ARG...: its disk is what QEMU sees, and so are its extents.
served ()
{
    local file="$1"
    shift
    qemu-img convert -f qcow2 -O raw "$file" expected
    rm -f copy
    timeout -k 10 60 "$NBDKIT" -r -U - "$PLUGIN" "$file" "$@" \
        --run 'nbdcopy "$uri" copy; nbdinfo --map "$uri" > extents' ||
        die "not served: $file $*"
    cmp copy expected || die "wrong data: $file $*"
    "$tool" check "$file" > found || die "$(cat found)"
}

# --- What QEMU makes.
for raw in off on; do
    for cs in 4k 64k 2M; do
        for l2 in off on; do
            if test $cs = 4k && test $l2 = on; then
                continue
            fi
            rm -f d/*
            # QEMU takes a relative name from its own directory.
            (cd d; image i.qcow2 i.data "data_file_raw=$raw" \
                "cluster_size=$cs" "extended_l2=$l2"; fill i.qcow2)
            (cd d; served i.qcow2 follow=beneath)
            mv d/i.data out/elsewhere
            (cd d; served_data ()
             {
                 qemu-img convert --image-opts \
                     "driver=qcow2,file.filename=i.qcow2,data-file.driver=file,data-file.filename=../out/elsewhere" \
                     -O raw expected
                 "$NBDKIT" -r -U - "$PLUGIN" i.qcow2 data-file=../out/elsewhere \
                     --run 'nbdcopy "$uri" copy2' || die "data-file="
                 cmp copy2 expected || die "wrong data by data-file="
             }
             served_data)
            if test $raw = on; then
                cmp -n 5242880 d/copy2 out/elsewhere ||
                    die "the raw file is not the disk"
            fi
        done
    done
done

# --- With a backing file, which has a data file as well.
rm -f ./*.qcow2 ./*.data d/* out/*
image base.qcow2 base.data
qemu-io -f qcow2 -c 'write -P 7 0 5M' base.qcow2 > io
qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 \
    -o data_file=top.data top.qcow2
fill top.qcow2
served top.qcow2 follow=beneath
served top.qcow2 follow=beneath data-file=top.data
served top.qcow2 follow=any backing=base.qcow2

# --- By default no file is followed; and what is not there is said.
image i.qcow2 i.data
fill i.qcow2
for word in follow=beneath follow=any data-file=; do
    expect_refusal "i\.qcow2: its external data file is .i\.data.*$word" \
        "$PLUGIN" i.qcow2
done
mv i.data gone
expect_refusal 'i\.data: .*No such file.*external data file of.*i\.qcow2' \
    "$PLUGIN" i.qcow2 follow=beneath
expect_refusal 'nowhere: .*No such file' "$PLUGIN" i.qcow2 data-file=nowhere
mkdir i.data
expect_refusal 'i\.data' "$PLUGIN" i.qcow2 follow=beneath
rmdir i.data
mv gone out/i.data
ln -s out/../../etc/passwd i.data
expect_refusal 'i\.data' "$PLUGIN" i.qcow2 follow=beneath
rm i.data
qemu-img create -q -f qcow2 plain.qcow2 1M
expect_refusal 'plain\.qcow2: it has no external data file that .*i\.data could be' \
    "$PLUGIN" plain.qcow2 data-file=out/i.data
mv out/i.data i.data

# name NAME: i.qcow2 names this data file, or none.
name ()
{
    "$PYTHON" -c 'import sys
from qcow2make import EXT_DATAFILE, Qcow2
exts = [(EXT_DATAFILE, sys.argv[1].encode())] if sys.argv[1] else []
Qcow2("named.qcow2", 1 << 20, incompat=4, exts=exts).write()' "$1"
}

name ''
expect_refusal 'named\.qcow2: its external data file is not named in it: say data-file=' \
    "$PLUGIN" named.qcow2 follow=any
for bad in 'json:{"driver":"file","filename":"i.data"}' nbd:unix:/x \
           ssh://host/x; do
    name "$bad"
    expect_refusal 'named\.qcow2: its external data file is .*only plain paths' \
        "$PLUGIN" named.qcow2 follow=any
done
name "file:$tmp/i.data"
"$NBDKIT" -r -U - "$PLUGIN" named.qcow2 follow=any --run 'nbdinfo "$uri"' \
    > /dev/null || die "file:"

# --- No file has two uses.
name named.qcow2
expect_refusal 'named\.qcow2: it can.t be an external data file, since it is the image' \
    "$PLUGIN" named.qcow2 follow=beneath
ln i.qcow2 same
expect_refusal 'same: it can.t be an external data file' \
    "$PLUGIN" i.qcow2 data-file=same
expect_refusal 'base.data: it is the external data file of .*top\.qcow2 already' \
    "$PLUGIN" top.qcow2 follow=beneath data-file=base.data
expect_refusal 'i\.data: it is the external data file of .*i\.qcow2 already' \
    "$PLUGIN" i.qcow2 data-file=i.data backing=i.data backing-format=raw

# --- What a data file excludes.
"$PYTHON" - <<'END'
from qcow2make import EXT_DATAFILE, Qcow2
name = [(EXT_DATAFILE, b"i.data")]
Qcow2("raw-backing.qcow2", 1 << 20, incompat=4, autoclear=2, exts=name,
      backing_name="plain.qcow2").write()
END
expect_refusal 'raw-backing\.qcow2: a backing file.*raw external data file.*exclude' \
    "$PLUGIN" raw-backing.qcow2 follow=any
qemu-img create -q -f qcow2 snap.qcow2 1M
qemu-img snapshot -c s snap.qcow2
printf '\4' | dd of=snap.qcow2 bs=1 seek=79 conv=notrunc status=none
expect_refusal 'snap\.qcow2: 1 internal snapshots.*external data file.*exclude' \
    "$PLUGIN" snap.qcow2 data-file=i.data

# --- A data file that is too short: what is missing is no zeros.
cp i.data short.data
truncate -s 2200k short.data
cat > short.py <<'END'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
assert h.pread(100 << 10, 2 << 20) == bytes([2]) * (100 << 10)
try:
    h.pread(512, 3000 << 10)
    sys.exit("it was read")
except nbd.Error as e:
    assert e.errno == "EIO", e
END
"$NBDKIT" -r -U - "$PLUGIN" i.qcow2 data-file=short.data \
    --run '"$PYTHON" short.py "$uri"' 2> log || die "$(cat log)"
grep -q 'i\.qcow2: damaged: L2 entry.*beyond the end of the external data file' \
    log || die "$(cat log)"

# --- The tool names it.
"$tool" info i.qcow2 > said
grep -q '^data-file  *i\.data$' said || die "$(cat said)"
"$tool" info --output=json --follow=beneath i.qcow2 > said
"$PYTHON" -c 'import json, sys
i = json.load(open("said"))
assert i["data-file"] == "i.data" and not i["data-file-raw"], i
assert i["data-file-opened"].endswith("i.data"), i' || die "$(cat said)"
"$tool" map --follow=beneath i.qcow2 > said
grep -q ' data .* 0x200000 .*i\.data$' said || die "$(cat said)"

# --- A raw file that was shorter than the disk, and that another program makes
# longer while it is served, keeps what that has put there.
short_raw ()
{
    rm -f grown.qcow2 grown.data
    "$PYTHON" -c 'from qcow2make import EXT_DATAFILE, Qcow2
Qcow2("grown.qcow2", 1 << 20, incompat=4, autoclear=2,
      exts=[(EXT_DATAFILE, b"grown.data")]).write()'
    truncate -s 512k grown.data
}
short_raw
cat > grown.py <<'END'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
with open("grown.data", "r+b") as f:
    f.seek(3 << 20)
    f.write(b"theirs")
h.pwrite(b"x" * 512, 700 << 10)
h.flush()
with open("grown.data", "rb") as f:
    f.seek(700 << 10)
    assert f.read(512) == b"x" * 512
    f.seek(3 << 20)
    assert f.read() == b"theirs", os.path.getsize("grown.data")
END
"$NBDKIT" -U - "$PLUGIN" grown.qcow2 data-file=grown.data \
    --run '"$PYTHON" grown.py "$uri"' || die "what has grown was cut off"

# What they put where the disk has zeros is not zeroed: if it is there before a
# client comes the image is only read, and else nothing is written.
cat > theirs.py <<'END'
import nbd, sys
def theirs():
    with open("grown.data", "r+b") as f:
        f.seek(900 << 10)
        f.write(b"theirs")
before = sys.argv[2] == "before"
if before:
    theirs()
h = nbd.NBD()
try:
    h.connect_uri(sys.argv[1])
    assert not before
    theirs()
    for request in (lambda: h.pwrite(b"x" * 512, 890 << 10),
                    lambda: h.zero(1 << 20, 0), lambda: h.trim(1 << 20, 0)):
        try:
            request()
            sys.exit("it was written")
        except nbd.Error as e:
            assert e.errno == "EIO", e
    assert h.pread(6, 0) == bytes(6)
except nbd.Error as e:
    assert before, e
with open("grown.data", "rb") as f:
    assert f.read() == bytes(900 << 10) + b"theirs", "it was zeroed"
END
for when in after before; do
    short_raw
    start_nbdkit "$PLUGIN" grown.qcow2 data-file=grown.data
    "$PYTHON" theirs.py "$uri" $when || die "$when: $(cat "$log")"
    end_process "$pid"
    grep -Eq "grown\.data (was made longer by another|has data from offset 0x0 on)" \
        "$log" || die "$when: $(cat "$log")"
done

# --- Of one that ends in the midst of what is mapped: what others append is
# copied, and zeroed; and zeroing costs nothing behind the end.
qemu-img create -q -f qcow2 -o data_file=end.data,data_file_raw=on \
    -o preallocation=metadata,cluster_size=2M end.qcow2 8M
truncate -s 7M end.data
cat > end.sh <<'END'
set -e
poke () # KIND: a request, while the file has another end
{
    "$PYTHON" -c 'import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.flush() if sys.argv[2] == "flush" else h.zero(8 << 20, 0)' "$uri" $1
}
poke flush
printf appended | dd of=end.data bs=1 seek=7M conv=notrunc 2> /dev/null
nbdcopy "$uri" copy
truncate -s 8M copy2
dd if=end.data of=copy2 bs=1M conv=notrunc 2> /dev/null
cmp copy copy2
poke zero
cmp -n 7340040 end.data /dev/zero
test "$(stat -c %s end.data)" = 7340040
test "$(stat -c %b end.data)" -le 16
nbdcopy "$uri" copy
cmp -n 8388608 copy /dev/zero
END
"$NBDKIT" -U - "$PLUGIN" end.qcow2 follow=beneath \
    --run 'export uri; bash end.sh' || die "a raw file that is too short: $?"
qemu-img check -q -f qcow2 end.qcow2

# --- A raw file is looked through before it is first written: however many runs
# subclusters make, it is served; but not with data where zeros should be.
qemu-img create -q -f qcow2 -o "data_file=many.data,data_file_raw=on" \
    -o extended_l2=on,preallocation=metadata many.qcow2 256M
"$PYTHON" - many.qcow2 <<'PY'
import struct
import sys
with open(sys.argv[1], "r+b") as f:
    h = f.read(104)
    assert 1 << struct.unpack(">I", h[20:24])[0] == 65536
    f.seek(struct.unpack(">Q", h[40:48])[0])
    l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
    for k in range(4096):
        f.seek(l2 + 16 * k + 8)
        f.write(struct.pack(">II", 0xaaaaaaaa, 0x55555555))
PY
qemu-img check -q -f qcow2 many.qcow2
cat > poke.sh <<'END'
"$PYTHON" -c 'import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 512, 2048)
h.flush()' "$1"
END
"$NBDKIT" -U - "$PLUGIN" many.qcow2 follow=beneath \
    --run 'bash poke.sh "$uri"' ||
    die "it is not served for writing"
test "$(head -c 2049 many.data | tail -c 1)" = x || die "not in the raw file"
qemu-img check -q -f qcow2 many.qcow2
printf y | dd of=many.data bs=1 seek=33556480 conv=notrunc 2> /dev/null
expect_no_connection 'many\.data has data from offset 0x2000[0-9a-f]* on, where zeros' \
    "$PLUGIN" many.qcow2 follow=beneath

# --- Locks: while it is written others may read the data file, but neither use
# it as theirs nor resize it; nor is it opened while a QEMU writes it.
qemu-img create -q -f qcow2 -o data_file=i.data -u other.qcow2 5M 2> said ||
    cp i.qcow2 other.qcow2
cat > locks.sh <<'END'
set -e
"$PYTHON" -c 'import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 512, 0)
h.flush()' "$1"
qemu-img info -f raw i.data > /dev/null
if qemu-img resize -q -f raw i.data 6M 2> locked; then exit 3; fi
grep -q 'resize. lock' locked
if qemu-io -f qcow2 -c 'write 0 512' other.qcow2 2> locked > /dev/null; then
    exit 4
fi
grep -q 'resize. lock' locked
END
cp i.qcow2 other.qcow2
"$NBDKIT" -U - "$PLUGIN" i.qcow2 follow=beneath \
    --run 'bash locks.sh "$uri"' || die "locks: $? $(cat locked)"
qemu_holds other.qcow2
if "$NBDKIT" -U - -r "$PLUGIN" i.qcow2 follow=beneath --run true 2> locked; then
    die "it is opened while QEMU writes its data file"
fi
grep -q 'i\.data: .*another process' locked || die "$(cat locked)"
qemu_lets_go

echo "ok"
