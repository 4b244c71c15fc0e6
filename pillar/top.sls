base:
  '*':
    - netspace.demo
