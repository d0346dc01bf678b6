//! Which endpoints serve (`proxy-common` rules, KEP-1669, KEP-2086, KEP-2433).
