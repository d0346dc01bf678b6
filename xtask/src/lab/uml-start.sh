# Becomes the guest. Consoles: 0 has the kernel's messages, 1 is COMMAND's standard output, 2 its standard error.
lab_start() {
    HOME=/run TMPDIR=/run/guest exec linux.uml mem="${LAB_MEMORY}M" rootfstype=hostfs hostfs=/ rw init=/run/lab/init \
        uml_dir=/run/guest/ umid=lab quiet con=null con0=null,fd:1 con1=null,fd:8 con2=null,fd:9
}
