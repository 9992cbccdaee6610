# Warnings, sanitizers and clang-tidy as functions over targets: nothing here is global.

# Every target of the project calls this once.
function(semkv_target_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wno-unused-parameter)
  if(SEMKV_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include)
  if(SEMKV_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${SEMKV_SANITIZE} -fno-omit-frame-pointer
                                             -fno-sanitize-recover=all)
    target_link_options(${target} PRIVATE -fsanitize=${SEMKV_SANITIZE})
  endif()
  if(SEMKV_TIDY)
    set_target_properties(${target} PROPERTIES CXX_CLANG_TIDY clang-tidy)
  endif()
endfunction()
