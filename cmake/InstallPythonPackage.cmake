# What `pip install .` adds to the Python package (pyproject.toml): semkv.h, from which the package
# declares the functions, and lib/ with libsemkv.so and every library that it needs, so that the
# wheel runs where the Debian packages are not installed. glibc and the C++ runtime stay outside:
# every Linux with Python has them, and two in one process would not agree.

# DT_RPATH instead of DT_RUNPATH, because it also serves what the bundled libraries need themselves:
# they are copied as Debian built them.
set_target_properties(semkv PROPERTIES INSTALL_RPATH $ORIGIN)
target_link_options(semkv PRIVATE LINKER:--disable-new-dtags)
# A wheel holds no symbolic links, so the library has one name.
set_property(TARGET semkv PROPERTY VERSION)
set_property(TARGET semkv PROPERTY SOVERSION)

install(FILES ${PROJECT_SOURCE_DIR}/include/semkv/semkv.h DESTINATION .)
install(TARGETS semkv LIBRARY DESTINATION lib)
install(CODE [[
  file(GET_RUNTIME_DEPENDENCIES LIBRARIES $<TARGET_FILE:semkv>
    RESOLVED_DEPENDENCIES_VAR libraries
    PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|gcc_s|stdc\\+\\+)\\.so")
  foreach(library IN LISTS libraries)
    # Named as it is asked for; the file may be some links away (Debian's alternatives).
    file(REAL_PATH ${library} file)
    cmake_path(GET library FILENAME name)
    file(COPY_FILE ${file} ${CMAKE_INSTALL_PREFIX}/lib/${name})
  endforeach()
]])
